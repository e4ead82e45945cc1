"""What the band can play: patterns, harmony and instruments of its styles, and the words people use for all of them.

A pattern is one bar in sixteenths: X loud, x plain, o soft, a dot for nothing, a lone dash for an empty bar. In the
bass a digit is a tone of the chord (1, 3, 5) and n leads to the next chord; in the chords a digit is a single tone of
the voicing (0 is the root); in the lead an o strikes the same note again. The patterns of a layer go from sparse to
dense. They are written in 4/4, and 3/4 plays the first twelve steps; the waltz is written in 3/4, and 4/4 repeats its
last beat.
"""

from __future__ import annotations

from dataclasses import dataclass

# Each role's instruments and each kit, by the words people use for them. The order is part of the trained world.
INSTRUMENT_WORDS = {
    "bass": {
        "sub": "sub bass, deep bass, low sub bass",
        "finger": "bass guitar, warm bass, fingered bass, upright bass",
        "pick": "picked bass, electric bass, punchy bass",
        "synth": "synth bass, analog bass, bass synth",
    },
    "chords": {
        "epiano": "electric piano, Rhodes, piano, e-piano, mellow keys",
        "guitar": "guitar, acoustic guitar, electric guitar, guitar chords, strummed guitar",
        "organ": "organ, Hammond organ, organ chords",
        "strings": "strings, string section, violins, orchestral strings, warm pad",
        "pluck": "synth plucks, plucked synth, synth arpeggio, harp",
        "vibes": "vibraphone, vibes, soft mallets",
    },
    "lead": {
        "square": "square lead, chip lead, retro synth lead",
        "flute": "flute, soft flute, flute melody, woodwinds",
        "bell": "bells, glockenspiel, music box, chimes",
        "saw": "saw lead, synth lead, bright synth melody",
        "guitar": "lead guitar, guitar melody, guitar solo, electric guitar",
        "marimba": "marimba, xylophone, wooden mallets",
    },
}
KIT_WORDS = {
    "acoustic": "live drums, acoustic drums, drum kit, real drums",
    "electronic": "drum machine, electronic drums, programmed drums, 808 drums",
    "soft": "soft drums, brushed drums, dusty drums, gentle percussion",
}
# What moods follow from: how much is going on (0 to 2), the scale, and the tempo.
ENERGY_WORDS = (
    "calm, chill, relaxed, gentle, laid-back, peaceful, soft",
    "",
    "energetic, lively, upbeat, powerful, driving, high-energy",
)
SCALE_WORDS = {
    "major": "happy, bright, cheerful, sunny, uplifting",
    "minor": "sad, dark, moody, melancholic, minor-key, serious",
}
TEMPO_WORDS = {
    "slow": "slow, down-tempo, unhurried",
    "": "mid-tempo, moderate, steady",
    "fast": "fast, up-tempo, quick",
}

# Words under the tags, and captions from two words to a sentence.
LINES = (
    (
        "Under the city lights",
        "Back on the open road",
        "Over the quiet water",
        "Here in the morning rain",
    ),
    ("we keep on moving", "I hear you calling", "nobody has to know", "the night is almost gone"),
)
CAPTIONS = (
    "{mood} {style}",
    "{mood} {style} with {one}",
    "{style} with {some}",
    "{style}, {some}, {speed}",
    "{mood}, {feel} {style}",
    "{feel} {style}, {speed}, {mood}",
    "a {speed} {style} track with {some}",
    "{style}, instrumental, {mood} and {feel}, featuring {one}",
    "{one} and {other}, {style}, {mood}",
    "A {mood} {style} piece with {some}, {speed} and {feel}.",
    "Instrumental {style} at a {speed} pace: {some}. The mood is {feel} and {mood}.",
    "make me a {mood} {style} song with {one}",
)

# Degrees of the four chords of a phrase, which begins at home.
PROGRESSIONS = {
    "pop": {"major": "1415 1451 1645 1465 1464", "minor": "1415 1451 1645 1615 1641"},
    "jazz": {"major": "1425 1415 1465 1645", "minor": "1415 1465 1451 1645"},
    "vamp": {"major": "1111 1145 1415 1141", "minor": "1111 1115 1145 1171 1415"},
    "slow": {"major": "1145 1415 1141 1165", "minor": "1145 1415 1161 1151"},
    "skank": {"major": "1414 1114 1454 1141", "minor": "1414 1717 1114 1747"},
    "country": {"major": "1141 1451 1415 1145", "minor": "1141 1471 1415 1145"},
    "score": {"major": "1645 1465 1164 1415", "minor": "1637 1673 1164 1645"},
}


@dataclass(frozen=True)
class Style:
    """How a kind of music is played.

    `voicings` are scale steps from a chord's root, `energies` how lively it may be (0 to 2), `players` the usual bass,
    chords, lead and kit, `fills` the drums' last steps in a section (kick, snare, hat, open; capitals are loud).
    `swing` delays every second sixteenth by a share of one, at most a third.
    """

    words: str
    moods: str
    bpm: tuple[int, int]
    minor: float
    harmony: str
    voicings: str
    players: tuple[str, str, str, str]
    kick: str
    snare: str
    hat: str
    open: str
    bass: str
    chords: str
    lead: str
    fills: str
    swing: tuple[float, ...] = (0.0,)
    energies: str = "012"
    beats: tuple[int, ...] = (4, 4, 4, 3)


# fmt: off
STYLES = {
    "lofi": Style(
        bpm=(68, 96), minor=0.5, harmony="jazz", voicings="135 137 1357 1359", energies="0012",
        words="lofi, lo-fi, lofi hip hop, lo-fi beat, lofi beat, chillhop, chill beat, study beat, jazzy hip hop",
        moods="cozy, mellow, late night, rainy day, dusty, dreamy, nostalgic",
        players=("sub finger", "epiano guitar vibes", "bell flute guitar marimba", "soft soft acoustic"),
        kick="X.......X....... X.....x...x..... X.....x.X..x.... X..x..x...x.....",
        snare="....X.......X... ....X..o....X... ....X..o.o..X..o", swing=(0.0, 0.15, 0.25, 0.33),
        hat="x...x...x...x... x.x.x.x.x.x.x.x. x.o.x.oox.o.x.oo",
        open="- - ......x......... ......x.......x.", fills="s.sS ..sS h.sSksSS",
        bass="1.......1....... 1.....1...5..... 1..1..5...1...n. 1..1..1.1..5.3n.",
        chords="X.......x....... 0.1.2.3.0.1.2.1. X.....x...x..... X...x...x.x.x... X..x..x...x.o.x.",
        lead="x...x.....x..... x..x..x.x...x... x..o..x...o.x... x.x...x.x..x.... x.xx..x.x..x.x..",
    ),
    "house": Style(
        bpm=(116, 130), minor=0.6, harmony="pop", voicings="135 137 1357", energies="0122",
        words="house, deep house, house music, club music, dance music, EDM, disco house, four on the floor",
        moods="groovy, smooth, late night club, summery, glossy, feel-good",
        players=("synth sub", "organ epiano pluck strings", "saw bell marimba", "electronic"),
        kick="X...X...X...X... X...X...X...X... X...X...X...X.x. X...X...X..xX...",
        snare="....x.......x... ....X.......X... ....X.......X..o", swing=(0.0, 0.0, 0.1, 0.2),
        hat="- x...x...x...x... x.x.x.x.x.x.x.x. xoxoxoxoxoxoxoxo",
        open="..x...x...x...x. ..X...X...X...X.", fills="s.ss ssSS s.s.ssSS S.s.S.ss",
        bass="..1...1...1...1. 1..1..1...1...n. 1.1...1.1..1..n. ..1..11...1..15.",
        chords="X.....X...X..... ..X...X...X...X. ..X..X....X..X.. X..X..X...X..X.. X..x..X.x..x..x.",
        lead="x..x..x...x..... x...x..x..x..x.. x.x..x.x..x..... x..x..x.x..x..x.",
    ),
    "techno": Style(
        bpm=(124, 146), minor=0.85, harmony="vamp", voicings="13 135 137", energies="122",
        words="techno, minimal techno, warehouse techno, rave, acid techno, hard techno, electronic dance music",
        moods="hypnotic, mechanical, pulsing, relentless, underground, industrial",
        players=("synth sub", "pluck organ strings", "saw square", "electronic"),
        kick="X...X...X...X... X...X...X...X... X...X...X...X..x X..xX...X..xX...",
        snare="- ....x.......x... ............X... ....X..x....X...",
        hat="..x...x...x...x. x.x.x.x.x.x.x.x. xoxoxoxoxoxoxoxo xxXxxxXxxxXxxxXx",
        open="- ......x.......x. ..x...x...x...x.", fills="hhhh s.ss ssssSSSS k.k.kkkk",
        bass="..1...1...1...1. ..11..11..11..11 1.11..1.1.11..1. .111.111.111.111 1.1.1.3.1.1.1.7.",
        chords="X............... 0.2.1.0.2.1.0.2. X.....X.....X... ...X..X....X..X. X..X..X...X..x..",
        lead="x..x..x...x..x.. x.x.x..x.x.x.... x..xx..xx..x.... x.xx.x.xx.x.x.x.",
    ),
    "ambient": Style(
        bpm=(60, 92), minor=0.5, harmony="slow", voicings="135 1359 1357", energies="001",
        words="ambient, ambient soundscape, meditation music, atmospheric music, new age, ambient pads, drone",
        moods="floating, spacious, weightless, deep, dreamy, hazy",
        players=("sub finger", "strings strings vibes epiano pluck", "bell flute marimba", "soft"),
        kick="- X............... X.......x.......",
        snare="- - ............x...",
        hat="- ....x.......x... o...o...o...o...",
        open="- x............... x...x...x...x...", fills="- - o.oo",
        bass="1...1...1...1... 1...1...5...1... 1.1.1.1.1.1.1.1.",
        chords="0.1.2.1.0.1.2.1. 0.1.2.3.2.1.0.1. X...x...x...x... X.12x.12X.12x.12 X.x.x.x.x.x.x.x.",
        lead="x.......x....... x...o...x...o... x..o..x...o.x... x...x...x.x.x...",
    ),
    "chiptune": Style(
        bpm=(116, 176), minor=0.35, harmony="pop", voicings="135 13 135", energies="012",
        words="chiptune, 8-bit chiptune, 8-bit, video game music, 8-bit game soundtrack, retro game music, arcade",
        moods="playful, nostalgic, adventurous, bouncy, heroic, cute",
        players=("synth", "pluck pluck organ", "square", "electronic"),
        kick="X.......X....... X.....x.X....... X...X...X...X... X..x..x.X..x..x.",
        snare="....X.......X... ....X.......X... ....X.......X.x.",
        hat="..x...x...x...x. x.x.x.x.x.x.x.x. x.xxx.xxx.xxx.xx",
        open="- - x...............", fills="ssss s.sS kskS s.s.ssSS",
        bass="1...5...1...5... 1.1.1.1.1.1.1.1. 1.1.5.1.1.1.5.n. 1..1..1.5..5..n.",
        chords="0.1.2.1.0.1.2.1. 0.1.0.2.0.1.0.2. X..X..X...X.X... 0121012101210121 0120120120120120",
        lead="x.x.x...x.x.x... x..xx.x.x....... x..x..x.x..x..x. x.x.x.xxx.x.x... xxx.x.x.xxx.x.x.",
    ),
    "rock": Style(
        bpm=(112, 168), minor=0.45, harmony="pop", voicings="15 15 135", energies="122",
        words="rock, alternative rock, indie rock, guitar rock, rock band, punk rock, rock anthem, pop rock",
        moods="raw, anthemic, gritty, rebellious, confident, stadium",
        players=("pick pick finger", "guitar guitar guitar organ", "guitar guitar saw", "acoustic"),
        kick="X.......X....... X.......X.x..... X.....x.X.x..... X..x..x.X.x.....",
        snare="....X.......X... ....X.......X... ....X.......X..o",
        hat="x...x...x...x... X.x.X.x.X.x.X.x. XxxxXxxxXxxxXxxx",
        open="- x............... X...x...X...x...", fills="ssSS sSsS s.s.sSSS SsksSsks",
        bass="1.......1....... 1.1.1.1.1.1.1.1. 1..1..1.1..1..n. 1.1.1.1.5.5.n.n.",
        chords="X.......X....... X...x...X...x... X..X..X.X..X..X. X.x.x.x.X.x.x.x. X.xxX.x.X.xxX.x.",
        lead="x...x...x....... x..x..x.x...x... x.x.x...x.x.x... x.xxx.x.x.xx..x.",
    ),
    "waltz": Style(
        bpm=(84, 168), minor=0.4, harmony="slow", voicings="135 135 1357", energies="012", beats=(3,),
        words="waltz, ballroom waltz, Viennese waltz, classical waltz, folk waltz, waltz dance",
        moods="elegant, romantic, graceful, swaying, old-fashioned, tender",
        players=("finger", "strings guitar epiano vibes", "flute flute bell marimba", "soft soft acoustic"),
        kick="X........... X........... X.......x...",
        snare="....x...x... ....x...x... ....X...X.o. ....X...X.x.",
        hat="- ....x...x... x...x...x... X.o.X.o.X.o.",
        open="- X........... x...x...x...", fills="s.ss s.sS s...s.sS",
        bass="1........... 1.......5... 1...5...5... 1...3...n...",
        chords="....X...X... 0.1.2.1.0.1. X...x...x... ....X...X.x. X.12x.12x.12",
        lead="x.......x... x...x...x... x...x.x.x... x...x.x.x.x. x.x.x.x.x...",
    ),
    "funk": Style(
        bpm=(88, 116), minor=0.6, harmony="vamp", voicings="137 1357 1359", energies="122",
        words="funk, funky groove, seventies funk, disco funk, funk jam, soul funk, funky beat",
        moods="groovy, tight, sweaty, playful, sassy, dance floor",
        players=("finger synth", "epiano epiano organ pluck", "saw flute marimba", "acoustic"),
        kick="X.......x....... X..x......x..... X..x..x...x..... X.x...x...x..x..",
        snare="....X.......X... ....X..o....X... ....X..o.o..X..o", swing=(0.0, 0.0, 0.12, 0.22),
        hat="x.x.x.x.x.x.x.x. xoxoxoxoxoxoxoxo X.xxX.xxX.xxX.xx",
        open="- ......x......... ......x.......x. ..x...x...x...x.", fills="s.sS ssSS k.sSk.SS sksSsSkS",
        bass="1.....1...1..... 1..1...1..5..... 1..1..1.1.5.n... 1.1..1.1..15..n.",
        chords="....X.......X... X..x....x..x.... ..x.X.....x.X... ..XX..x...XX..xx X.xX..x.X.xX..x.",
        lead="x..xx........... x..x....x.x..... x.xx..x..xx..... x.x..xx.x..x.x..",
    ),
    "reggae": Style(
        bpm=(64, 92), minor=0.5, harmony="skank", voicings="135 135 1357", energies="012",
        words="reggae, roots reggae, dub, dub reggae, Jamaican reggae, rocksteady, reggae groove",
        moods="sunny, island, laid-back, irie, heartfelt, rootsy",
        players=("sub finger", "organ guitar organ", "flute square marimba", "acoustic soft acoustic"),
        kick="........X....... ........X....... X.......X....... X...X...X...X...",
        snare="........X....... ........X.....o. ........X...o.o.", swing=(0.0, 0.15, 0.25, 0.33),
        hat="x...x...x...x... x.x.x.x.x.x.x.x. x.o.x.o.x.o.x.oo",
        open="- ..............x. ......x.......x.", fills="s.sS S.ss s..s..S. S.s.sSsS",
        bass="1.....1.....5... 1..1....1.3.5... ....1.1.3.5.1.n. 1..1..3.5...n.1.",
        chords="....X.......X... ..X...X...X...X. ..X...X...X...X. ..X.o.X.o.X.o.Xo",
        lead="x.....x...x..... x..x......x.x... x.x...x.o...x... x..x..x.x..o....",
    ),
    "drum and bass": Style(
        bpm=(164, 178), minor=0.85, harmony="vamp", voicings="135 137 1357", energies="122",
        words="drum and bass, drum & bass, dnb, liquid drum and bass, jungle, breakbeat, neurofunk",
        moods="rolling, frantic, futuristic, nocturnal, urgent, weightless",
        players=("synth sub synth", "strings epiano strings", "saw bell square", "electronic"),
        kick="X.........X..... X.........X..... X..x......X..... X.x.......X..x..",
        snare="....X.......X... ....X..o....X... ....X..o.o..X..o ....X..o.o..X.oo",
        hat="x.x.x.x.x.x.x.x. x.xxx.xxx.xxx.xx xxXxxxXxxxXxxxXx",
        open="- ..............x. ......x.......x.", fills="s.ss ssSS k.sSk.sS sksSssSS",
        bass="1............... 1.........1..... 1.....1...5...n. 1..1..1...1.1.n.",
        chords="X............... X.........X..... X.....X.....X... X..x......X..x..",
        lead="x.......x....... x..x......x..... x.....x...x...x. x..x..x...x..x..",
    ),
    "country": Style(
        bpm=(92, 144), minor=0.15, harmony="country", voicings="135 135 13", energies="012",
        words="country, country music, bluegrass, Americana, Nashville country, country folk, honky-tonk",
        moods="down-home, rustic, wide open, heartland, porch, dusty road",
        players=("finger finger pick", "guitar", "guitar flute guitar", "soft acoustic soft"),
        kick="X.......X....... X.......X....... X.......X.....x.",
        snare="..o...o...o...o. ..x...x...x...x. o.xoo.xoo.xoo.xo ooXoooXoooXoooXo",
        hat="- - x...x...x...x...",
        open="- - x...............", fills="s.ss sssS ssss s.sssssS",
        bass="1.......5....... 1.......5....... 1...3...5...n... 1.1.5.5.1.1.n.n.",
        chords="....x.......x... ..x...x...x...x. X.x.x.x.X.x.x.x. 0.X.2.X.0.X.2.X. 0.x.1.xx2.x.1.xx",
        lead="x...x...x.x..... x.x.x...x.x.x... x.xxx.x.x.x..... xxx.x.xxx.x.x...",
    ),
    "cinematic": Style(
        bpm=(60, 108), minor=0.75, harmony="score", voicings="15 135 1358", energies="0122",
        words="cinematic strings, cinematic, film score, orchestral, orchestral soundtrack, trailer music, epic score",
        moods="epic, sweeping, dramatic, majestic, suspenseful, heroic",
        players=("sub", "strings", "flute bell flute", "electronic"),
        kick="- X............... X.......X....... X..X..X.X.......",
        snare="- - ............x... ............x.xx",
        hat="- - -",
        open="- - X...............", fills="- - k.k. k.k.kkkk K.k.KkKk",
        bass="1............... 1.......1....... 1...1...1...1... 1.1.1.1.1.1.1.1.",
        chords="0.1.2.1.0.1.2.1. X.x.x.x.X.x.x.x. X.12x.12X.12x.12 0121012101210121 XxxxXxxxXxxxXxxx",
        lead="x.......x....... x.....x.x....... x...x...x...x... x...x.x.x...x...",
    ),
}
# fmt: on
