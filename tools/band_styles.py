"""What the band can play: its instruments, its styles, and the words that people use for both.

Patterns are written in sixteenths of a bar in 4/4: X accented, x plain, o soft, a point for nothing. A bar in 3/4 is
the first twelve; the waltz is written in twelve, and its bar in 4/4 repeats the last beat. Tracks carry the names that
the studio's tasks use for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.band_sounds import Finish, Patch

STEMS = ("drums", "bass", "chords", "lead", "pad")


@dataclass(frozen=True)
class Instrument:
    """What plays one stem: its sound, the track it belongs to, and what people call it."""

    patch: Patch
    track: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Style:
    """How a kind of music goes; every table that `band_score` reads and the words of its captions.

    `drums` maps a piece of the kit to its pattern, where `light` names those that play in quiet sections. `bass`,
    `chords` and `lead` are patterns; `chord_kind` is how a chord is set: triad, seventh, power, or arpeggio (one tone
    a step). `swing` delays every second sixteenth by this share of it; `loose` is the spread of the timing in
    milliseconds. `gate` is the share of the time to the next step that a chord sounds.
    """

    name: str
    words: tuple[str, ...]
    moods: tuple[str, ...]
    bpm: tuple[int, int]
    beats: tuple[int, ...]
    minor: float
    kit: dict
    kit_words: tuple[str, ...]
    drums: dict[str, str]
    light: tuple[str, ...]
    bass: str
    bass_kind: str
    chords: str
    chord_kind: str
    lead: str
    instruments: dict[str, tuple[str, ...]]
    finish: dict[str, Finish]
    progressions: tuple[tuple[int, ...], ...] = ((0, 5, 3, 4), (0, 3, 0, 4), (0, 4, 5, 3))
    gate: float = 0.9
    swing: float = 0.0
    loose: float = 5.0
    fills: str = ""
    crash: bool = False
    ducked: float = 0.0
    hiss: float = 0.0
    lead_height: int = 76
    chord_bars: int = 1
    lead_rest: float = 0.2


INSTRUMENTS = {
    # bass
    "round bass": Instrument(Patch("round", 900, 400, 0.2, 1.5, 0.008, 0.6, 0.6, 0.06), "bass", ("round bass",)),
    "upright bass": Instrument(
        Patch("string", 1200, 350, 0.12, 1.0, 0.006, 0.35, 0.25, 0.07), "bass", ("upright bass", "double bass")
    ),
    "house bass": Instrument(Patch("saw", 1500, 250, 0.1, 1.0, 0.003, 0.25, 0.5, 0.03), "bass", ("bouncing bass",)),
    "acid bass": Instrument(
        Patch("saw", 2600, 300, 0.08, 0.5, 0.002, 0.14, 0.3, 0.02, drive=1.2), "bass", ("acid bass", "rolling bass")
    ),
    "sub drone": Instrument(Patch("sine", 500, 300, 1.0, 1.0, 0.4, 4.0, 0.8, 0.5), "bass", ("deep drone", "sub bass")),
    "square bass": Instrument(Patch("triangle", 8000, 8000, 1, 4, 0.001, 2, 0.9, 0.01), "bass", ("8-bit bass",)),
    "picked bass": Instrument(
        Patch("string", 2600, 700, 0.2, 1.5, 0.003, 0.5, 0.55, 0.05, drive=0.6), "bass", ("picked bass", "driving bass")
    ),
    "slap bass": Instrument(
        Patch("string", 5200, 500, 0.05, 1.5, 0.001, 0.16, 0.35, 0.03, drive=0.8), "bass", ("slap bass", "funky bass")
    ),
    # chords
    "electric piano": Instrument(
        Patch("tine", 4000, 900, 0.5, 2, 0.004, 0.9, 0.25, 0.2, (-3, 3), 0.4, (6, 4.0)),
        "keyboard",
        ("electric piano", "Rhodes piano"),
    ),
    "soft guitar": Instrument(
        Patch("string", 2600, 700, 0.25, 1.5, 0.003, 0.5, 0.1, 0.2, (0.0,), 0, (5, 0.6)),
        "guitar",
        ("mellow guitar", "soft guitar"),
    ),
    "house piano": Instrument(
        Patch("string", 7000, 1500, 0.25, 3, 0.002, 0.4, 0.3, 0.08, (-4, 4), 0.6), "keyboard", ("piano", "house piano")
    ),
    "organ stabs": Instrument(
        Patch("organ", 6000, 3000, 0.2, 4, 0.004, 0.5, 0.8, 0.05), "keyboard", ("organ stabs", "organ")
    ),
    "dark stab": Instrument(
        Patch("saw", 2800, 350, 0.12, 1, 0.002, 0.2, 0.2, 0.1, (-9, 9), 0.8), "synth", ("dark stabs", "synth stabs")
    ),
    "slow synth": Instrument(
        Patch("saw", 1400, 700, 3.0, 1, 1.2, 4.0, 0.9, 0.8, (-7, 0, 7), 0.9, (4, 0.3)),
        "synth",
        ("evolving synth", "slow synth chords"),
    ),
    "glass pad": Instrument(
        Patch("bell", 3000, 900, 3.0, 1, 0.8, 3.0, 0.6, 0.9, (-5, 5), 0.9, (5, 0.4)), "synth", ("glassy pad",)
    ),
    "pulse arpeggio": Instrument(
        Patch("pulse", 12000, 12000, 1, 4, 0.001, 0.3, 0.5, 0.008), "synth", ("fast arpeggios", "chip arpeggios")
    ),
    "distorted guitar": Instrument(
        Patch("string", 5200, 2800, 0.5, 2, 0.004, 3.0, 0.8, 0.05, (-6, 6), 1.0, drive=4.0),
        "guitar",
        ("distorted guitars", "electric guitars", "power chords"),
    ),
    "accordion": Instrument(
        Patch("reed", 3800, 3800, 1, 2, 0.03, 2, 0.9, 0.05, (-7, 7), 0.5), "keyboard", ("accordion",)
    ),
    "parlour piano": Instrument(
        Patch("string", 5000, 1000, 0.3, 2, 0.002, 0.6, 0.15, 0.15), "keyboard", ("piano", "parlour piano")
    ),
    "clavinet": Instrument(
        Patch("pulse", 5500, 900, 0.06, 2, 0.001, 0.12, 0.3, 0.02, drive=0.5), "keyboard", ("clavinet",)
    ),
    "wah guitar": Instrument(
        Patch("string", 6500, 700, 0.05, 1, 0.001, 0.1, 0.2, 0.02, drive=0.7),
        "guitar",
        ("scratchy guitar", "wah guitar"),
    ),
    # leads
    "bells": Instrument(Patch("bell", 6000, 1500, 0.4, 2, 0.002, 0.7, 0.05, 0.5), "keyboard", ("soft bells", "bells")),
    "mellow flute": Instrument(
        Patch("flute", 3000, 2000, 1, 2, 0.06, 1, 0.8, 0.12, wobble=(12, 4.8)), "woodwinds", ("flute", "mellow flute")
    ),
    "pluck": Instrument(
        Patch("saw", 6500, 600, 0.1, 2, 0.002, 0.2, 0.1, 0.12, (-8, 8), 0.7), "synth", ("plucked synth", "synth plucks")
    ),
    "acid line": Instrument(
        Patch("saw", 4200, 500, 0.09, 1.5, 0.002, 0.15, 0.3, 0.03, drive=1.5),
        "synth",
        ("acid line", "hypnotic synth line"),
    ),
    "square lead": Instrument(
        Patch("square", 14000, 14000, 1, 4, 0.001, 1, 0.8, 0.01, wobble=(10, 6)), "synth", ("square lead", "8-bit lead")
    ),
    "lead guitar": Instrument(
        Patch("string", 5000, 3200, 1, 2, 0.006, 2.5, 0.8, 0.1, wobble=(14, 5.4), drive=3.0),
        "guitar",
        ("lead guitar", "guitar melody"),
    ),
    "violin": Instrument(
        Patch("bowed", 5000, 4200, 1, 2, 0.07, 2, 0.85, 0.12, (-3, 3), 0.3, (16, 5.6)), "strings", ("violin",)
    ),
    "brass stabs": Instrument(
        Patch("saw", 4500, 1500, 0.12, 2, 0.02, 0.3, 0.6, 0.05, (-8, 0, 8), 0.7),
        "brass",
        ("brass stabs", "horn section"),
    ),
    "far bells": Instrument(
        Patch("bell", 5000, 1200, 0.9, 2, 0.01, 1.6, 0.05, 0.9), "keyboard", ("distant bells", "sparse bells")
    ),
    # pads
    "warm pad": Instrument(
        Patch("saw", 900, 600, 2, 0.5, 0.5, 3, 0.8, 0.4, (-6, 6), 0.8, (6, 0.5)), "synth", ("warm pad", "soft pad")
    ),
    "string section": Instrument(
        Patch("bowed", 3000, 2400, 2, 1, 0.3, 3, 0.9, 0.3, (-8, 0, 8), 0.9, (8, 5.2)), "strings", ("strings",)
    ),
    "dark pad": Instrument(
        Patch("saw", 700, 350, 2, 0.3, 0.8, 3, 0.9, 0.5, (-9, 9), 1.0), "synth", ("dark pad", "droning pad")
    ),
    "chip pad": Instrument(Patch("square", 4000, 4000, 1, 1, 0.01, 2, 0.7, 0.02), "synth", ("chip chords",)),
    "rock organ": Instrument(
        Patch("organ", 4500, 4500, 1, 2, 0.02, 3, 0.9, 0.06, (-3, 3), 0.6, (8, 6.0), drive=0.4), "keyboard", ("organ",)
    ),
}

STYLES = {
    style.name: style
    for style in (
        Style(
            name="lofi",
            words=("lofi hip hop", "lofi", "chillhop", "lofi beat"),
            moods=("relaxed", "cozy", "mellow", "late night study", "rainy day", "dusty"),
            bpm=(68, 94),
            beats=(4, 4, 4, 3),
            minor=0.5,
            kit={"kick": (52, 70, 0.13, 0.1), "snare": (185, 0.12, 0.6), "hat": (5_500, 0.03)},
            kit_words=("dusty drums", "soft drums", "boom bap drums"),
            drums={"kick": "X.....x...x.....", "snare": "....X.......X...", "hat": "x.o.x.o.x.o.x.oo"},
            light=("kick", "hat"),
            bass="X.....x...x.....",
            bass_kind="roots",
            chords="X.....x...o.....",
            chord_kind="seventh",
            lead="x..x..x...x.....",
            instruments={
                "bass": ("round bass", "upright bass"),
                "chords": ("electric piano", "soft guitar"),
                "lead": ("bells", "mellow flute"),
                "pad": ("warm pad",),
            },
            finish={
                "drums": Finish(0.75, 35, 7_000, 0.05, 0.4),
                "bass": Finish(0.55, 30, 2_500, 0.0),
                "chords": Finish(0.5, 90, 4_200, 0.12, 0.8),
                "lead": Finish(0.44, 200, 4_500, 0.2, 1.0, (0.25, 0.35), 0.2),
                "pad": Finish(0.16, 150, 2_500, 0.2, 1.2),
            },
            swing=0.28,
            loose=12,
            hiss=0.006,
            lead_rest=0.45,
        ),
        Style(
            name="house",
            words=("house", "deep house", "house music", "club house track"),
            moods=("uplifting", "groovy", "dancefloor", "sunny", "euphoric"),
            bpm=(116, 130),
            beats=(4,),
            minor=0.5,
            kit={"kick": (50, 170, 0.16, 0.5), "snare": (210, 0.12, 0.7), "hat": (7_500, 0.025)},
            kit_words=("four-on-the-floor drums", "four to the floor kick", "club drums"),
            drums={
                "kick": "X...X...X...X...",
                "clap": "....X.......X...",
                "open": "..X...X...X...X.",
                "hat": "o.oo..oo..oo..oo",
                "shaker": "o.o.o.o.o.o.o.o.",
            },
            light=("kick", "hat"),
            bass="..x...x...x..x.x",
            bass_kind="octaves",
            chords="X..x..x...X..x..",
            chord_kind="seventh",
            lead="x.x..x.x..x.x...",
            instruments={
                "bass": ("house bass",),
                "chords": ("house piano", "organ stabs"),
                "lead": ("pluck",),
                "pad": ("string section", "warm pad"),
            },
            finish={
                "drums": Finish(0.85, 30, 18_000, 0.05, 0.4),
                "bass": Finish(0.61, 35, 5_000, 0.0),
                "chords": Finish(0.38, 150, 12_000, 0.12, 0.8),
                "lead": Finish(0.43, 250, 12_000, 0.12, 1.0, (0.4, 0.28)),
                "pad": Finish(0.17, 250, 8_000, 0.3, 1.6),
            },
            gate=0.5,
            loose=3,
            ducked=0.6,
            progressions=((0, 5, 3, 4), (0, 3, 5, 4), (0, 0, 5, 3)),
        ),
        Style(
            name="techno",
            words=("techno", "dark techno", "warehouse techno", "techno track"),
            moods=("dark", "hypnotic", "driving", "industrial", "relentless"),
            bpm=(124, 145),
            beats=(4,),
            minor=0.95,
            kit={"kick": (46, 230, 0.2, 0.9), "snare": (180, 0.1, 0.8), "hat": (8_500, 0.02)},
            kit_words=("pounding kick", "hard techno drums", "machine drums"),
            drums={
                "kick": "X...X...X...X...",
                "open": "..x...x...x...x.",
                "hat": "oxoxoxoxoxoxoxox",
                "rim": "...x..x....x..x.",
                "clap": "............x...",
            },
            light=("kick", "hat"),
            bass=".xxx.xxx.xxx.xxx",
            bass_kind="pedal",
            chords="...X......x.....",
            chord_kind="triad",
            lead="x.xx.xx.x.xx.x.x",
            instruments={
                "bass": ("acid bass",),
                "chords": ("dark stab",),
                "lead": ("acid line",),
                "pad": ("dark pad",),
            },
            finish={
                "drums": Finish(1.0, 28, 18_000, 0.1, 0.5),
                "bass": Finish(0.42, 30, 4_000, 0.0),
                "chords": Finish(0.44, 150, 9_000, 0.3, 1.6, (0.5, 0.34)),
                "lead": Finish(0.26, 200, 10_000, 0.12, 1.0, (0.35, 0.21), 0.15),
                "pad": Finish(0.22, 60, 3_000, 0.4, 2.0),
            },
            gate=0.35,
            loose=1,
            ducked=0.5,
            lead_height=62,
            lead_rest=0.1,
            progressions=((0, 0, 0, 0), (0, 0, 5, 0), (0, 0, 0, 6)),
        ),
        Style(
            name="ambient",
            words=("ambient", "ambient soundscape", "drone ambient", "ambient music"),
            moods=("calm", "spacious", "meditative", "floating", "peaceful", "ethereal"),
            bpm=(60, 84),
            beats=(4, 4, 3),
            minor=0.45,
            kit={"kick": (44, 20, 0.3, 0.0), "snare": (150, 0.2, 0.5), "hat": (6_000, 0.05)},
            kit_words=("a soft heartbeat pulse", "barely any drums", "a faint pulse"),
            drums={"kick": "X.......o.......", "shaker": "o...o...o...o..."},
            light=("kick",),
            bass="X...............",
            bass_kind="roots",
            chords="X...............",
            chord_kind="seventh",
            lead="x.....x.....x...",
            instruments={
                "bass": ("sub drone",),
                "chords": ("slow synth", "glass pad"),
                "lead": ("far bells", "mellow flute"),
                "pad": ("string section",),
            },
            finish={
                "drums": Finish(0.55, 25, 5_000, 0.5, 2.0),
                "bass": Finish(0.32, 25, 1_500, 0.1, 1.0),
                "chords": Finish(0.5, 80, 6_000, 0.6, 2.4),
                "lead": Finish(0.37, 250, 8_000, 0.7, 2.6, (0.5, 0.55), -0.2),
                "pad": Finish(0.24, 150, 5_000, 0.7, 2.6),
            },
            gate=1.1,
            loose=15,
            lead_rest=0.5,
            chord_bars=2,
            lead_height=79,
            progressions=((0, 3, 5, 4), (0, 5, 3, 0), (0, 2, 3, 0)),
        ),
        Style(
            name="chiptune",
            words=("chiptune", "8-bit", "8-bit video game music", "retro game soundtrack"),
            moods=("playful", "energetic", "nostalgic", "adventurous", "bouncy"),
            bpm=(120, 172),
            beats=(4, 4, 4, 3),
            minor=0.35,
            kit={"kick": (60, 260, 0.06, 0.0), "snare": (260, 0.07, 0.95), "hat": (4_500, 0.015)},
            kit_words=("noise drums", "8-bit drums"),
            drums={"kick": "X.....x.X.......", "snare": "....X.......X...", "hat": "x.x.x.x.x.x.x.x."},
            light=("kick", "hat"),
            bass="x.x.x.x.x.x.x.x.",
            bass_kind="octaves",
            chords="xxxxxxxxxxxxxxxx",
            chord_kind="arpeggio",
            lead="x.x.x..xx.x.x...",
            instruments={
                "bass": ("square bass",),
                "chords": ("pulse arpeggio",),
                "lead": ("square lead",),
                "pad": ("chip pad",),
            },
            finish={
                "drums": Finish(0.78, 60, 16_000, 0.0),
                "bass": Finish(0.45, 40, 16_000, 0.0),
                "chords": Finish(0.24, 100, 16_000, 0.0, pan=-0.35),
                "lead": Finish(0.4, 150, 16_000, 0.0, 0.5, (0.25, 0.18), 0.1),
                "pad": Finish(0.09, 150, 9_000, 0.0, pan=0.35),
            },
            loose=0,
            gate=0.8,
            fills="snare",
            lead_rest=0.12,
        ),
        Style(
            name="rock",
            words=("rock", "alternative rock", "guitar rock", "rock anthem"),
            moods=("energetic", "powerful", "raw", "driving", "anthemic"),
            bpm=(100, 152),
            beats=(4, 4, 4, 3),
            minor=0.5,
            kit={"kick": (62, 90, 0.11, 0.8), "snare": (200, 0.16, 0.65), "hat": (6_500, 0.035)},
            kit_words=("live drums", "loud drums", "acoustic drums"),
            drums={"kick": "X.....x.X.x.....", "snare": "....X.......X...", "hat": "X.x.X.x.X.x.X.x."},
            light=("kick", "hat"),
            bass="X.x.x.x.x.x.x.x.",
            bass_kind="pedal",
            chords="X.x.x.x.X.x.x.x.",
            chord_kind="power",
            lead="X...x.x.x...x.x.",
            instruments={
                "bass": ("picked bass",),
                "chords": ("distorted guitar",),
                "lead": ("lead guitar",),
                "pad": ("rock organ",),
            },
            finish={
                "drums": Finish(1.14, 35, 17_000, 0.2, 0.8),
                "bass": Finish(0.42, 40, 5_000, 0.0),
                "chords": Finish(0.3, 90, 7_500, 0.08, 0.7),
                "lead": Finish(0.31, 200, 8_000, 0.2, 1.2, (0.25, 0.36), 0.15),
                "pad": Finish(0.12, 150, 8_000, 0.15, 0.9, pan=-0.3),
            },
            loose=6,
            fills="tom",
            crash=True,
            gate=0.95,
            progressions=((0, 5, 3, 4), (0, 3, 4, 0), (0, 6, 3, 0)),
        ),
        Style(
            name="waltz",
            words=("waltz", "Viennese waltz", "ballroom waltz", "waltz in three"),
            moods=("elegant", "romantic", "graceful", "swaying", "old-fashioned"),
            bpm=(84, 176),
            beats=(3,),
            minor=0.35,
            kit={"kick": (58, 30, 0.12, 0.05), "snare": (220, 0.1, 0.7), "hat": (6_000, 0.03)},
            kit_words=("light brushes", "brushed drums"),
            drums={"kick": "X...........", "brush": "....x...x...", "ride": "o...o...o..."},
            light=("kick", "brush"),
            bass="X...........",
            bass_kind="fifths",
            chords="....x...x...",
            chord_kind="triad",
            lead="X...x...x.x.",
            instruments={
                "bass": ("upright bass",),
                "chords": ("accordion", "parlour piano"),
                "lead": ("violin", "mellow flute"),
                "pad": ("string section",),
            },
            finish={
                "drums": Finish(0.7, 40, 14_000, 0.2, 1.0),
                "bass": Finish(0.6, 35, 4_000, 0.1, 0.9),
                "chords": Finish(0.57, 120, 9_000, 0.2, 1.2),
                "lead": Finish(0.36, 180, 10_000, 0.3, 1.5, pan=0.1),
                "pad": Finish(0.16, 150, 7_000, 0.35, 1.6),
            },
            gate=0.5,
            loose=9,
            fills="brush",
            lead_rest=0.15,
            progressions=((0, 3, 4, 0), (0, 5, 3, 4), (0, 4, 3, 0)),
        ),
        Style(
            name="funk",
            words=("funk", "seventies funk", "funk groove", "funky jam"),
            moods=("groovy", "playful", "tight", "sweaty", "upbeat"),
            bpm=(90, 118),
            beats=(4, 4, 4, 3),
            minor=0.6,
            kit={"kick": (58, 110, 0.09, 0.6), "snare": (230, 0.1, 0.6), "hat": (7_000, 0.02)},
            kit_words=("tight drums", "syncopated drums", "breakbeat drums"),
            drums={
                "kick": "X..x..x...x..x..",
                "snare": "....X..o.o..X..o",
                "hat": "xoxoxoxoxoxoxoxo",
            },
            light=("kick", "hat"),
            bass="X..x.x.X..xx..x.",
            bass_kind="octaves",
            chords="..x.x.oX..x.x.o.",
            chord_kind="seventh",
            lead="X..x....X.x.....",
            instruments={
                "bass": ("slap bass",),
                "chords": ("clavinet", "wah guitar"),
                "lead": ("brass stabs",),
                "pad": ("rock organ",),
            },
            finish={
                "drums": Finish(1.1, 35, 17_000, 0.06, 0.4),
                "bass": Finish(0.39, 35, 8_000, 0.0),
                "chords": Finish(0.5, 200, 11_000, 0.05, 0.4, pan=-0.3),
                "lead": Finish(0.38, 200, 11_000, 0.12, 0.7, pan=0.2),
                "pad": Finish(0.1, 200, 8_000, 0.1, 0.7),
            },
            gate=0.4,
            swing=0.12,
            loose=6,
            fills="snare",
            lead_rest=0.35,
            progressions=((0, 0, 3, 0), (0, 3, 0, 4), (0, 0, 3, 4)),
        ),
    )
}
