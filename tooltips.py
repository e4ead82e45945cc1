"""Every text that the page shows: labels, help, examples, progress sentences, messages.

A field stands under the name it has in a request. `{low}`, `{high}` and `{default}` in a help text are filled in from
the table of limits, so that no number stands twice. Nothing here is escaped: whoever puts a text into HTML does that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

TITLE = "ACE Music Studio"
TAGLINE = "Describe a song, add lyrics if you like, and hear it sung and played by ACE-Step 1.5."

# --- fields -------------------------------------------------------------------------------------------------------

# Fields with a number take their label from limits.LIMITS, so that a message names the field as the page does.
LABELS = {
    "prompt": "Prompt",
    "lyrics": "Lyrics",
    "instrumental": "Instrumental",
    "key": "Key",
    "time_signature": "Time signature",
    "language": "Language",
    "quality": "Quality",
    "reference": "Reference audio",
    "sampler": "Sampler",
    "format": "Format",
    "timbre_token": "Timbre token",
    "memory_plan": "Memory plan",
    "source": "Source audio",
    "action": "What to do",
    "source_prompt": "Prompt of the source",
    "source_lyrics": "Lyrics of the source",
    "repaint_mode": "How freely",
    "track": "Track",
    "tracks": "Tracks",
    "part": "Only in a region",
    "mix": "Mix with the source",
    "plan": "Plan the song first",
    "rewrite": "Let it rewrite my prompt",
    "brief": "What the song is about",
    "structure": "Structure",
    "tone": "Tone",
    "loras": "LoRAs",
}

UPLOAD = "WAV, FLAC, MP3, OGG or AIFF, 1 second to 10 minutes, up to 500 MB"
# A text under "cover.prompt" or "repaint.lyrics" is the one for that tab or action.
HELP = {
    "prompt": "Genre, mood, instruments, voice: what the song sounds like.",
    "lyrics": "The words to sing. Mark sections with [Verse], [Chorus], [Bridge] on a line of their own. "
    "No lyrics: no singing.",
    "instrumental": "No singing, whatever is in the lyrics.",
    "duration": "Seconds, {low} to {high}. The song has this length exactly.",
    "bpm": "Tempo in beats a minute, {low} to {high}. Blank: the model decides.",
    "key": "Type to find one, such as F# major or Bbm. Automatic: the model decides.",
    "time_signature": "Beats of a bar.",
    "language": "The language the lyrics are sung in.",
    "takes": "Versions of the song to make at once, each with its own seed.",
    "quality": "More steps take longer and sound cleaner.",
    "seed": "The same seed and settings give the same song. -1 draws a new one.",
    "reference": "Optional: a recording that lends its timbre, its sound and voice. Its melody is not used.",
    "steps": "How often the sound is refined, {low} to {high}. Blank: {default}.",
    "guidance": "How closely the song follows prompt and lyrics, {low} to {high} (classifier-free guidance). "
    "Blank: {default}.",
    "shift": "Higher spends more steps on form, fewer on detail, {low} to {high} (timestep shift). Blank: {default}.",
    "sampler": "The straight one (ODE) repeats exactly; fresh noise at every step (SDE) varies texture.",
    "cfg_start": "Where in the run guidance begins: 0 is the first step.",
    "cfg_end": "Where guidance ends: 1 is the last step.",
    "format": "Of the files to download.",
    "loudness": "LUFS, {low} to {high}; streaming services play at -14. Blank: the loudest peak is at -1 dBFS.",
    "fade_out": "Seconds of fading at the end.",
    "variation": "Mixes a second seed into the first: 0 is the seed's own song, 1 is the other seed's.",
    "variation_seed": "The second seed, used when Variation is above 0. -1 draws one.",
    "timbre_token": "A token the largest checkpoint was trained with. Off: as diffusers runs it.",
    "memory_plan": "What lies in the graphics memory at once. Less is slower; another choice loads the model again.",
    "cover.source": f"The song to cover: {UPLOAD}. The cover is as long.",
    "extend.source": f"The song to go on with: {UPLOAD}. Its samples stay, but for the overlap at each new end.",
    "edit.source": f"The song to change: {UPLOAD}. Its length stays.",
    "cover.prompt": "What the cover sounds like: genre, mood, instruments, voice.",
    "cover.lyrics": "The words to sing, those of the source or others. No lyrics: no singing.",
    "strength": "How long the source leads: 1 keeps to its melody all the way, 0 listens to the words alone.",
    "noise_strength": "Starts nearer to the sound of the source itself: 0 is a fresh start, 1 hardly leaves it.",
    "extend.prompt": "What the whole song sounds like, the source included.",
    "extend.lyrics": "The words for the new part. No lyrics: no singing.",
    "before": "New music in front of the source, {low} to {high} seconds.",
    "after": "New music behind the source, {low} to {high} seconds.",
    "overlap": "Seconds of the source, at each new end, that are made anew to fade from one into the other.",
    "action": "",
    "repaint.prompt": "What the region sounds like. Blank: whatever fits.",
    "repaint.lyrics": "The lyrics of the whole song, with the new words in place.",
    "morph.prompt": "What the song becomes.",
    "morph.lyrics": "The words the song gets; leave those that stay. No lyrics: no singing.",
    "layer.prompt": "What the song with its new track sounds like. May be blank.",
    "layer.lyrics": "What a voice sings, if the track is one. May be blank.",
    "extract.prompt": "What the song sounds like; helps to tell the track from the others. May be blank.",
    "extract.lyrics": "The words of the song, if they are known. May be blank.",
    "complete.prompt": "What the completed song sounds like. May be blank.",
    "complete.lyrics": "What a voice sings, if one of the tracks is a voice. May be blank.",
    "source_prompt": "What the song sounds like now.",
    "source_lyrics": "The words it has now. Blank: the same as the new ones.",
    "start": "Seconds from the beginning.",
    "end": "Seconds from the beginning; 0 is the end of the file.",
    "repaint_mode": "How much of the old music in the region shines through.",
    "repaint_strength": "0 stays close to the old, 1 starts afresh.",
    "n_min": "The share of the run that is skipped: higher keeps more of the song's form.",
    "n_max": "Where the source lets go: lower gives the new words more freedom.",
    "n_avg": "Draws that are averaged in every step: more is steadier and takes longer.",
    "track": "The one to work on.",
    "tracks": "The ones to add.",
    "part": "Off: the track plays through the whole song.",
    "mix": "Off: the new track alone, as long as the source, for your own mixing.",
    "extend.loudness": "LUFS, {low} to {high}. Blank: the source keeps its level. A number scales all of it.",
    "edit.loudness": "LUFS, {low} to {high}. Blank: what stays keeps its level. A number scales all of it.",
    "extend.fade_out": "Seconds of fading at the end of the extended song.",
    "plan": "The planner, a language model of ACE-Step's own, lays out the song before it is made. What you filled in "
    "stays as it is.",
    "rewrite": "The planner words your prompt anew, in more detail, and the song follows its words.",
    "plan_temperature": "How freely the plan is drawn: 0 always takes the likeliest, {high} is wild.",
    "plan_cfg": "How closely the plan follows prompt and lyrics: {low} is not at all.",
    "plan_seed": "The same plan seed and settings give the same plan. -1 takes the seed of the first take.",
    "brief": "A story, a feeling, a picture; names and words that must be in it.",
    "structure": "A preset, or words of your own.",
    "tone": "How it speaks: tender, angry, funny, like an old folk song.",
    "lyrics.language": "The language of the lyrics.",
    "temperature": "How freely words are chosen: 0 always takes the likeliest, {high} is wild.",
    "top_p": "Only the likeliest words that together reach this share are chosen from.",
    "max_tokens": "In tokens, {low} to {high}; a word is one or two. The song model reads up to 2,048.",
    "lyrics.seed": "The same seed and settings give the same lyrics. -1 draws a new one.",
    "loras": "Small files that teach the model a style or a voice. All that are added act together.",
}

PLACEHOLDERS = {
    "prompt": "warm lo-fi hip hop, dusty piano, soft drums, late evening",
    "lyrics": "[Verse]\nYour first line\n\n[Chorus]\nThe line everybody sings",
    "brief": "two old friends meet at a train station after twenty years and pretend nothing has changed",
    "tone": "tender, with a smile",
}
STEPS_BY_QUALITY = "as Quality says ({steps})"
AUTOMATIC = "Automatic"
LOUDNESS_OFF = "Off"
QUALITIES = {"draft": "Draft", "standard": "Standard", "best": "Best"}
LYRICS_OFF = "Switched off by Instrumental."

TURBO_GUIDANCE = "Not used: this turbo checkpoint has guidance built in."
TURBO_QUALITY = "This turbo checkpoint makes every quality in {steps} steps."

# --- sections and buttons -----------------------------------------------------------------------------------------

TABS = {"generate": "Generate", "cover": "Cover", "extend": "Extend", "edit": "Edit", "lyrics": "Lyrics"}
RESULT = "Takes"
DETAILS = "Song details"
ADVANCED = "Advanced"
EXAMPLES_LABEL = "Start from an example"
GENERATE = "Generate"
GO = {
    "cover": "Make the cover",
    "extend": "Extend the song",
    "edit": "Make the change",
    "lyrics": "Write lyrics",
}
KEY_GO, KEY_CANCEL = "Ctrl or Cmd + Enter", "Esc"
RESET = "Reset to defaults"
GPU_SECONDS = "This asks ZeroGPU for {seconds} seconds of GPU time."
USE_IN = {"cover": "Use in Cover", "extend": "Use in Extend", "edit": "Use in Edit"}
CANCEL = "Cancel"
STOP = "Stop"
UNDO = "Undo"
RECORD = "Record: everything needed to make this again"
RECORD_LABEL = "Record"
DOWNLOAD_TAKE = "Download {format}"
COPY_SEED = "Copy seed {seed}"
COPIED = "Copied"
EMPTY_RESULTS = {
    "generate": "Nothing here yet. Fill in the prompt or start from an example; your takes appear here.",
    "cover": "Nothing here yet. Choose a song and say what its cover sounds like; your takes appear here.",
    "extend": "Nothing here yet. Choose a song and how much longer it gets; your takes appear here.",
    "edit": "Nothing here yet. Choose a song and what to do with it; your takes appear here.",
}

# Each fills the form; fields it does not name go back to their defaults in `EXAMPLE_DEFAULTS`.
EXAMPLE_DEFAULTS = {
    "prompt": "",
    "lyrics": "",
    "instrumental": False,
    "duration": 60,
    "bpm": "",
    "key": "",
    "time_signature": "",
    "language": "unknown",
}
EXAMPLES = {
    "Lo-fi at night": {
        "prompt": "lo-fi hip hop, dusty upright piano, warm tape hiss, brushed drums, mellow upright bass, "
        "vinyl crackle, rain on the window, slow and tender, late night",
        "instrumental": True,
        "bpm": "76",
        "key": "D minor",
        "time_signature": "4",
    },
    "Folk duet": {
        "prompt": "indie folk duet, female and male voices in close harmony, fingerpicked acoustic guitar, "
        "upright bass, soft banjo, stomps and claps in the chorus, hopeful, warm room sound",
        "lyrics": "[Verse]\nWe painted the door when the winter was over\n"
        "Left one of our names in the grain of the wood\n"
        "You carried the river home on your shoulder\nI kept the fire the best that I could\n\n"
        "[Chorus]\nOh, leave the light on, leave the light on\nThe road is long but it bends toward home\n"
        "Oh, leave the light on, leave the light on\nI never learned to sing alone\n\n"
        "[Outro]\nI never learned to sing alone",
        "duration": 90,
        "bpm": "98",
        "key": "G major",
        "time_signature": "4",
        "language": "en",
    },
    "Valse à Paris": {
        "prompt": "chanson, French waltz, expressive female voice, accordion, nylon guitar, double bass, café at dusk, "
        "nostalgic, playful, close and dry recording",
        "lyrics": "[Couplet]\nLa ville s'éteint, les chaises se taisent\nUn verre oublié brille encore au comptoir\n"
        "Je compte les pas, un, deux, trois, je m'apaise\nTu danses toujours au fond du miroir\n\n"
        "[Refrain]\nTourne, tourne, la nuit est légère\nTourne, tourne, et ne dis plus rien\n"
        "On a dansé sur toute la terre\nSans quitter ce petit coin",
        "duration": 75,
        "bpm": "132",
        "key": "A minor",
        "time_signature": "3",
        "language": "fr",
    },
}

COVER_EXAMPLES = {
    "As a lo-fi piece": {
        "prompt": "lo-fi hip hop, dusty upright piano, brushed drums, mellow bass, vinyl crackle, slow and tender",
        "strength": 0.7,
    },
    "As an orchestra": {
        "prompt": "film score, symphony orchestra, sweeping strings, french horns, timpani, wide concert hall, grand",
        "strength": 0.8,
    },
    "Sung by a choir": {
        "prompt": "mixed choir a cappella, soprano, alto, tenor, bass in close harmony, cathedral reverb, warm",
        "strength": 0.9,
    },
}
EXTEND_EXAMPLES = {
    "An intro": {
        "prompt": "a sparse intro that builds up slowly, the same instruments, no voice",
        "before": 15,
        "after": 0,
    },
    "Another verse": {"prompt": "the song goes on, same voice, same band", "before": 0, "after": 40},
    "An ending": {
        "prompt": "the song comes to rest, last chord, instruments drop out one by one",
        "before": 0,
        "after": 20,
        "options.fade_out": 5,
    },
}
EDIT_EXAMPLES = {
    "A solo in the middle": {
        "action": "repaint",
        "prompt": "expressive electric guitar solo over the same chords, same drums and bass",
        "options.repaint_mode": "aggressive",
    },
    "Add strings": {
        "action": "layer",
        "track": "strings",
        "prompt": "warm string section, long notes, soft",
        "options.mix": True,
    },
    "Take out the vocals": {"action": "extract", "track": "vocals"},
}
LYRICS_EXAMPLES = {
    "A lighthouse": {
        "brief": "a lighthouse keeper on the last night before the light is switched off for good; the ships will not "
        "know that anybody was there",
        "structure": "Ballad",
        "language": "en",
        "tone": "quiet, proud, a little bitter",
    },
    "Monday morning": {
        "brief": "the coffee machine is broken, the bus is late, and still this is going to be a great day",
        "structure": "Pop with pre-chorus",
        "language": "en",
        "tone": "funny, fast, full of energy",
    },
    "Das alte Fahrrad": {
        "brief": "ein rostiges Fahrrad, mit dem drei Geschwister den Sommer am See verbracht haben",
        "structure": "Folk strophes",
        "language": "de",
        "tone": "warm und wehmütig",
    },
}
# How far a morph goes, as upstream advises.
MORPHS_LABEL = "What changes"
MORPHS = {
    "New lyrics": {"options.n_min": 0.6, "options.n_max": 1.0, "options.n_avg": 3},
    "New style": {"options.n_min": 0.2, "options.n_max": 0.4, "options.n_avg": 3},
}


def morph_plan(n_min: float, n_max: float, n_avg: int) -> str:
    """Say in one line what a morph's numbers do."""
    draws = "one draw a step" if n_avg == 1 else f"{n_avg} draws a step"
    return f"Morphs from {n_min:.0%} to {n_max:.0%} of the run, {draws} (under Advanced)."


# --- actions ------------------------------------------------------------------------------------------------------

ACTION_HELP = {
    "repaint": "Makes a region anew. Outside of it every sample stays as it is.",
    "morph": "Moves the whole song from the words that describe it now to new ones.",
    "layer": "Makes one more track that fits the song.",
    "extract": "Makes one track of the song on its own.",
    "complete": "Takes a single track, such as a voice or a riff, and adds a band to it.",
}
EXPERIMENTAL = "{name} (experimental)"
EXPERIMENTAL_HELP = "This checkpoint was not trained for it: it runs, and what comes out may be off."
TRACKS = {"fx": "FX"}


def track(name: str) -> str:
    """Return how a track is called on the page."""
    return TRACKS.get(name, name.replace("_", " ").capitalize())


def length_in_all(source: float, before: float, after: float) -> str:
    """Say how long an extended song gets; all in seconds."""
    parts = [f"{before:g} s" if before else "", f"{source:.6g} s of source", f"{after:g} s" if after else ""]
    total = before + source + after
    return f"In all {clock(total)} ({' + '.join(filter(None, parts))} = {total:.6g} s)."


# --- help with the words ------------------------------------------------------------------------------------------

TOKENS = "{used} of {most} tokens, song details included."
TOKENS_UNKNOWN = "How many of the model's {most} tokens this takes is unknown until the model is here."


def tokens_over(used: int, most: int, dropped: str) -> str:
    """Say that a prompt is too long, in tokens, and which words at its end are not read."""
    said = f'The model does not read "{dropped}".' if dropped else "The model does not read all of it."
    return f"{used} of {most} tokens, song details included. {said}"


ASSIST = {"inspire": "Surprise me", "polish": "Polish", "describe": "Describe this audio"}
ASSIST_HELP = {
    "inspire": "Surprise me makes a whole song of the idea in Prompt.",
    "polish": "Polish words prompt and lyrics as the model knows them.",
    "describe": "Describe this audio listens to it and fills in the prompt and the song details.",
}
ASSIST_DONE = "Done. Undo brings back what was there before."
UNDONE = "What was there before is back."


def needs_planner(names: list[str], reason: str) -> str:
    """Say why buttons with these names cannot be pressed."""
    verb = "needs" if len(names) == 1 else "need"
    return f"{' and '.join(names)} {verb} the planner. {reason}".strip()


def remarks(count: int) -> str:
    """Return the title of a list of advice."""
    return f"{count} remarks on the lyrics"


def advice(line: int, message: str) -> str:
    """Return one piece of the linter's advice; line 0 means all of the lyrics."""
    return f"Line {line}: {message}" if line else message


# --- the plan -----------------------------------------------------------------------------------------------------

NO_PLAN = "There is no planner here, so songs are made without a plan. {reason}"
NO_PLANNER = "Not used: there is no planner here."
PLANNED = "Plan:"
UNPLANNED = "Made without a plan: {reason}"
REWRITTEN = "The prompt in the planner's words: {caption}"
KEEP_PLAN = "Keep this plan"
PLAN_KEPT = "The plan's seed {seed} stands under Advanced now; the next song from the same words has the same plan."


def plan_facts(bpm: int | None, key: str, metre: str, language: str) -> list[str]:
    """Return what was planned, without what was left open."""
    return [part for part in (f"{bpm} BPM" if bpm else "", key, metre, language) if part]


# --- LoRAs --------------------------------------------------------------------------------------------------------

ADD = "Add"
LORA_FILE = "LoRA files"
LORA_FILE_HELP = "A .safetensors file, or a PEFT folder as a .zip, up to 2 GB."
LORA_HUB = "LoRA on Hugging Face"
LORA_HUB_HELP = "org/repo, or org/repo:file where it has several files."
LORA_HUB_PLACEHOLDER = "org/repo"
LORA_HUB_OFF = "This Space does not fetch LoRAs from Hugging Face: upload the file instead."
LORA_NOT_HUB = (
    "{text} is no repository on Hugging Face. Write it as org/repo, or org/repo:file.safetensors for one of its files."
)
LORA_NO_HUB = "Which one? Write the repository as org/repo, or org/repo:file.safetensors for one of its files."
LORA_PRESET = "LoRA from the list"
LORA_NO_PRESET = "Choose one from the list first."
LORA_LATER = "fetched from Hugging Face when the song is made"
# What the list of the LoRAs says; a text under "up_of" is how a screen reader calls the button "up".
LORA_LIST = {
    "title": "Added, in the order in which they act",
    "empty": "None yet: the model plays as it is.",
    "clear": "Remove all",
    "weight": "Weight",
    "weight_of": "Weight of {name}",
    "up": "Up",
    "up_of": "Move up {name}",
    "down": "Down",
    "down_of": "Move down {name}",
    "remove": "Remove",
    "remove_of": "Remove {name}",
    "added": "Added {name}.",
    "moved": "{name} is at place {place} now.",
    "removed": "Removed {name}.",
    "cleared": "Removed all.",
    "one": "There is 1 LoRA.",
    "several": "There are {count} LoRAs.",
}


def lora_facts(info: Any) -> list[str]:
    """Return what is known of a LoRA from its file: format, rank, alpha, layers, size, fit (`info` is a LoraInfo)."""
    facts = [
        info.format,
        *(f"{name} {_span(values)}" for name, values in (("rank", info.ranks), ("alpha", info.alphas)) if values),
        "1 layer" if info.modules == 1 else f"{info.modules} layers",
        f"{info.size / 1e6:,.1f} MB" if info.size >= 50_000 else f"{info.size / 1e3:,.1f} kB",
        f"for {info.made_for}" if info.made_for else "",
        "fits this model" if info.fits else "",
    ]
    return [fact for fact in facts if fact]


def preset_facts(preset: Any) -> list[str]:
    """Return what the list of presets says of one: what it is for, its licence, its model (`preset` is a Preset)."""
    return [preset.purpose, preset.licence, f"for {preset.fits}"]


def lora_acted(lora: dict[str, Any]) -> str:
    """Say what a LoRA did in a song, from its entry in the record."""
    if not lora["weight"]:
        return f"LoRA {lora['name']}: weight 0, so it did not act."
    layers = "1 layer" if lora["modules"] == 1 else f"{lora['modules']} layers"
    return f"LoRA {lora['name']}: weight {lora['weight']:g}, acted on {layers}."


def _span(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


# --- lyrics -------------------------------------------------------------------------------------------------------

WRITTEN = "Lyrics"
WRITTEN_HELP = "Change what you like; sections begin with a tag such as [Verse] on a line of its own."
WRITTEN_EMPTY = "Say what the song is about, and its lyrics appear here as they are written. Or write your own."
USE_IN_GENERATE = "Use in Generate"
LYRICS_FAILED = "No lyrics this time"
LYRICS_STOPPED = "Stopped. What is written stays."


def writing(tokens: int, seconds: float) -> str:
    """Say how far the lyrics are."""
    return f"Writing, {tokens:,} tokens, {clock(seconds)} so far."


def written(tokens: int, seconds: float, end: str) -> str:
    """Say how the lyrics ended: by themselves ("stop") or at the most tokens that were asked for ("length")."""
    cut = " They were cut at Max length, which stands under Advanced." if end == "length" else ""
    return f"{tokens:,} tokens written in {clock(seconds)}.{cut}"


# --- settings from a file -----------------------------------------------------------------------------------------

RESTORE = "Restore its settings"
RESTORE_OFFER = "This file was made in a studio like this one and carries its settings."
SETTINGS_FILE = "Settings from a song"
SETTINGS_FILE_HELP = "Drop a file that the studio made, and the form is filled with its settings."
NOTHING_TO_RESTORE = "This file carries no settings of the studio."


def restored(count: int, left_out: int, reference: bool, loras: int = 0) -> str:
    """Say how many settings came back, how many did not, and what no file carries: the reference, uploaded `loras`."""
    kept = "1 setting restored" if count == 1 else f"{count} settings restored"
    lost = f"; {left_out} left out, which this tab does not have or allow" if left_out else ""
    missing = " Its reference audio is not in the file: add it again." if reference else ""
    if loras:
        named, it = ("1 uploaded LoRA is", "it") if loras == 1 else (f"{loras} uploaded LoRAs are", "them")
        missing += f" {named} not in the file: add {it} again."
    return f"{kept}{lost}.{missing}"


# --- progress -----------------------------------------------------------------------------------------------------

STAGES = {
    "waiting": "Waiting: another song is being made",
    "lending": "Waiting for one of ZeroGPU's cards",
    "downloading": "Downloading the model",
    "loading": "Loading the model",
    "preparing": "Preparing",
    "writing": "Writing",
    "planning": "Planning the song",
    "reading": "Reading your words",
    "steps": "Making the music",
    "decoding": "Turning it into sound",
    "finishing": "Saving the takes",
    "aligning": "Listening for where each line is sung",
}
COUNTED = {"planning": "code", "steps": "step", "decoding": "part", "finishing": "take"}
STARTING = "Starting ..."
QUEUED = "Waiting for its turn ..."
CANCELLED = "Cancelled. Your settings are still here."
STOPPED = "The run stopped before it was done. Your settings are still here; please try again."
DOWNLOAD_STARTING = "Asking the hub for the model ..."
DOWNLOAD_CANCELLED = "Cancelled. What has arrived is kept, and the next download goes on from there."
DOWNLOAD_DONE = "The model is here. The next song uses it."
DOWNLOAD_UNUSED = (
    "The model is here, but ACE_STUDIO_MODEL asks for the preview. Start the studio without it to use the model."
)


def clock(seconds: float) -> str:
    """Return seconds as minutes and seconds, such as 1:05."""
    whole = max(int(seconds + 0.5), 0)
    return f"{whole // 60}:{whole % 60:02d}"


def progress_sentence(event: Any) -> str:
    """Say in one sentence where a run is: stage, step n of N, elapsed, left (`event` is an events.Progress)."""
    parts = [STAGES[event.stage]]
    if event.steps and event.stage == "downloading":
        parts.append(f"{event.step / 1000:.1f} of {event.steps / 1000:.1f} GB")
    elif event.step and event.stage == "writing":
        parts.append(f"{event.step:,} tokens")
    elif event.steps and event.stage in COUNTED:
        parts.append(f"{COUNTED[event.stage]} {event.step} of {event.steps}")
    parts.append(f"{clock(event.elapsed)} so far")
    if event.left is not None:
        parts.append(f"about {clock(event.left)} left")
    return ", ".join(parts) + "."


def done_sentence(takes: int, asked: int, seconds: float) -> str:
    """Say how a run ended, such as "3 takes made in 0:12."."""
    made = "1 take" if takes == 1 else f"{takes} takes"
    return f"{made}{f' of {asked}' if takes < asked else ''} made in {clock(seconds)}."


# --- result -------------------------------------------------------------------------------------------------------

FAILED_TITLE = "No song this time"
UNEXPECTED = "Something unexpected went wrong."
UNEXPECTED_HINT = "Please try again; the log of the studio has the details."
TAKE_FAILED = "Take {take} (seed {seed}) did not work out: {message}"


def look_at(labels: list[str]) -> str:
    """Point at the fields that keep a song from being made."""
    *others, last = labels
    listed = f"{', '.join(others)} and {last}" if others else last
    return f"Nothing was started yet. Please look at {listed}."


def take_title(number: int) -> str:
    """Return the heading of a take."""
    return f"Take {number}"


def take_facts(take: dict[str, Any]) -> list[str]:
    """Return a take's measured facts from its entry in the record: length, peak in dBFS, loudness in LUFS."""
    facts = [clock(take["duration"]), f"peak {take['peak_dbfs']:.1f} dBFS"]
    if take.get("loudness_lufs") is not None:
        facts.append(f"{take['loudness_lufs']:.1f} LUFS")
    return facts


def song_facts(bpm: int | None, key: str, variation: float) -> list[str]:
    """Return what a take was made with, without what was left to the model."""
    return [*plan_facts(bpm, key, "", ""), *([f"variation {variation:g}"] if variation else [])]


# --- takes --------------------------------------------------------------------------------------------------------

LISTEN = "Listen here"
LEVEL = "Play at equal loudness"
LEVEL_HELP = (
    "While you listen, louder takes are turned down to the quietest; the files stay as they are. Listen here, or the "
    "number of a take as a key, goes on in that take at the same place."
)
AGAIN = {"retake": "Retake", "more": "More like this", "timed": "Timed lyrics"}
TAKE_FORMAT = "Format of take {number}"
PREPARING = "Preparing {format} ..."
FROM_LOSSY = "Made from the {source}: it sounds like the {source}, whatever its format."
TAKE_GONE = "This take is not in the studio's memory any more. Make it again for more."
UPLOAD_GONE = "{label} is not in the studio's memory any more."
UPLOAD_GONE_HINT = "Choose the file again in the form, and press its button."
VARIED = "Take 1 is the one you liked, Take 2 one like it, {amount:g} of the way to another. The form is untouched."
RETAKEN = "Made again with the settings of the former takes and a new seed. The form is untouched."
NOTHING_SUNG = "There is no line in the lyrics that could be sung."
LRC = "Timed lyrics as LRC"
NOTHING_ELSE_KEPT = "What you upload goes after a day. Nothing else about you is kept."
TIMED_TITLE = "Lyrics of take {number}, line by line"


def timed(lines: int) -> str:
    """Say how many lines got their times."""
    return f"{'1 line' if lines == 1 else f'{lines} lines'} timed."


def alignment(score: float) -> str:
    """Say how far the times can be trusted (`score` from 0 to 1)."""
    return f"Alignment score {score:.2f} of 1: how clearly the model follows these words in the song."


def kept_for(days: float, gb: float) -> str:
    """Say how long finished songs stay in the output folder; infinite is no limit."""
    limits = [
        f"for {'1 day' if days == 1 else f'{days:g} days'}" if days < math.inf else "",
        f"up to {gb:g} GB in all" if gb < math.inf else "",
    ]
    said = ", ".join(filter(None, limits))
    if not said:
        return f"Finished songs stay in the studio's output folder. {NOTHING_ELSE_KEPT}"
    return f"Finished songs stay in the studio's output folder {said}; the oldest go first. {NOTHING_ELSE_KEPT}"


# --- header -------------------------------------------------------------------------------------------------------

STATUS_PENDING = "Looking at the model and the device ..."
PREVIEW_TITLE = "Preview engine"
PREVIEW_TEXT = (
    "A tiny built-in model with random weights stands in for the real one. Everything works, but what you hear is "
    "noise, not music. To make real songs, get the real model; {gb:g} GB are downloaded once."
)
PROBLEM_TITLE = "The model cannot be used"
GET_MODEL = "Get the real model ({gb:g} GB)"
DEVICES = {"cuda": "NVIDIA GPU", "mps": "Apple GPU", "cpu": "CPU"}
DEVICE_UNKNOWN = "Device: not looked at yet"
HUB_STATUS = "Model: {model}, downloaded with the first song"


WRITERS = {"planner": "Planner", "lyrics": "Lyrics writer"}
WRITER_STATES = {
    "off": "off",
    "none": "not here",
    "ready": "{model} (not loaded yet)",
    "loaded": "{model}",
    "failed": "could not be loaded",
}
WRITER_FETCHED = "{model} (downloaded when it is needed)"


def writer_facts(status: dict[str, Any]) -> list[str]:
    """Return the facts of the status line on the planner and the lyrics writer."""
    facts = []
    for name, title in WRITERS.items():
        writer = status[name]
        state = WRITER_FETCHED if writer.get("source") == "hub" else WRITER_STATES[writer["state"]]
        facts.append(f"{title}: {state.format(model=writer['model'].rpartition('/')[2])}")
    return facts


def status_parts(status: dict[str, Any]) -> list[str]:
    """Return the facts of the status line: the models and, once it is known, the device and why it was chosen."""
    if status["engine"] == "preview":
        parts = ["Model: preview (built in)"]
    elif status.get("source") == "hub":
        parts = [HUB_STATUS.format(model=status["model"])]
    else:
        parts = [f"Model: {status['model']}{', turbo' if status['turbo'] else ''}"]
    parts += writer_facts(status)
    if not status["device"]:
        return [*parts, DEVICE_UNKNOWN]
    parts.append(f"Device: {DEVICES.get(status['device'], status['device'])}, {status['dtype']}")
    return [*parts, status["device_reason"]] if status["device_reason"] else parts


# --- the door -----------------------------------------------------------------------------------------------------

READY = "ACE Music Studio is ready at {url}"
PORT_TAKEN = (
    "ACE Music Studio cannot listen on {host}, port {port}: the port is in use or not allowed. "
    "Name another one with --port or GRADIO_SERVER_PORT."
)
NO_PORT = (
    "ACE Music Studio found no free port on {host} from 7860 on. Name a free one with --port or GRADIO_SERVER_PORT."
)
BAD_PORT = 'GRADIO_SERVER_PORT must be a whole number from 1 to 65535, not "{port}".'
MCP_READY = "Its tools for assistants (MCP) are at {url}gradio_api/mcp/"
MCP_MISSING = "The tools for assistants (MCP) are not served: the package mcp is missing. pip install 'gradio[mcp]'"
SHARED = "Anyone who has this link can use the studio: {url}"
NOT_SHARED = "No public link was made: the service for it could not be reached."

# --- the command line ---------------------------------------------------------------------------------------------

CLI_ABOUT = "Starts ACE Music Studio, a web studio for making songs, and prints its address."
CLI_END = "An argument wins over its variable. Models are named as on Hugging Face, or by a folder. docs/ has the rest."
CLI_HELP = {
    "host": "address to listen on; 0.0.0.0 opens the studio to the network (GRADIO_SERVER_NAME, 127.0.0.1)",
    "port": "port to listen on (GRADIO_SERVER_PORT, the first free one from 7860)",
    "share": "make a public link through Gradio's servers: anyone who has it can use the studio (GRADIO_SHARE)",
    "model": "song model: org/repo, a folder, or preview (ACE_STUDIO_MODEL, ACE-Step/acestep-v15-xl-sft-diffusers)",
    "planner": "language model that plans songs: org/repo or org/repo/folder, a folder, preview or off "
    "(ACE_STUDIO_PLANNER, ACE-Step/Ace-Step1.5)",
    "lyrics": "language model that writes lyrics: org/repo, a folder, preview or off "
    "(ACE_STUDIO_LYRICS, Qwen/Qwen2.5-7B-Instruct)",
    "output": "folder for finished songs (ACE_STUDIO_OUTPUT, outputs beside app.py)",
    "mcp": "serve the API as tools for assistants, too (GRADIO_MCP_SERVER)",
    "check": "tell what would run here, load and start nothing, and end with status 1 where no song could be made",
    "help": "show this and end",
}
CLI_HOST = 'A host is a name or an IP address such as 127.0.0.1 or 0.0.0.0, without http:// and port, not "{value}".'
CLI_PORT = 'A port is a whole number from 1 to 65535, not "{value}".'
CLI_NO_FOLDER = "There is no folder {value}."
CLI_MODEL = 'A model is org/repo on Hugging Face, a folder, or {words}, not "{value}".'
CLI_OUTPUT_FILE = "Songs cannot be kept in {value}: {place} is a file, not a folder."
CLI_OUTPUT_CLOSED = "Songs cannot be kept in {value}: {place} cannot be written to."

CHECK_LABELS = {
    "studio": "Studio",
    "packages": "Packages",
    "device": "Device",
    "memory": "Memory",
    "plan": "Memory plan",
    "model": "Song model",
    "planner": "Planner",
    "lyrics": "Lyrics writer",
    "cache": "Model cache",
    "output": "Songs go to",
    "result": "Result",
}
CHECK_PACKAGE = "The packages are not all here: {reason}. ./run.sh installs them."
CHECK_FOUND = "{model}, {size}, in {folder}."
CHECK_PREVIEW = "The built-in preview, made at the first song."
CHECK_STANDS_IN = "The built-in preview stands in; its sound is not music. {problem}"
CHECK_SIZE = "It is {size} to fetch."
CHECK_TO_FETCH = "{model} is not here and will be fetched before it is first used: {size}."
CHECK_UNASKED = "{model} is not here, and Hugging Face could not be asked for it ({reason})."
CHECK_NO_ROOM = "{size} are to be fetched, and {free} are free in {folder}."
CHECK_FREE = "{folder}, {free} free."
CHECK_FULL = "{folder} has {free} free; a song may need {least}."
CHECK_CANNOT_CHECK = "This could not be checked: {reason}."
CHECK_RAM = "{free} of {total} free"
CHECK_VRAM = "{total} on the graphics card"
CHECK_PLAN = "{plan}; the shortest song takes {need}."
CHECK_GOOD = "A song can be made here."
CHECK_GOOD_PREVIEW = "A song can be made here, by the preview engine, whose sound is not music."
CHECK_BAD = "A song could not be made here: see {names}."
