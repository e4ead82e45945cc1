"""What can be measured of a piece of music: its tempo, its key, its style. Rulers for `python -m training evaluate`.

Each is tried on rendered pieces, where the truth is known (the evaluation prints that row beside the engine's).
Samples are float arrays [2, n] at 48 kHz. `tools.matrix` names keys and counts a wrong tempo as is done here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from limits import SAMPLE_RATE

LISTENING_RATE = 24_000
HOP = 240
SLOWEST = 40.0
FASTEST = 220.0
# How often each degree sounds, from the tonic up: Albrecht & Shanahan 2013, "The use of large corpora to train a new
# type of key-finding algorithm", Music Perception 31.
PROFILES = {
    "major": (0.238, 0.006, 0.111, 0.006, 0.137, 0.094, 0.016, 0.214, 0.009, 0.080, 0.008, 0.081),
    "minor": (0.220, 0.006, 0.104, 0.123, 0.019, 0.103, 0.012, 0.214, 0.062, 0.022, 0.061, 0.052),
}
OCTAVES = 6
"""From C2 up, in which notes are looked for."""
NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


# --- tempo --------------------------------------------------------------------------------------------------------


def pulse(samples: np.ndarray) -> np.ndarray:
    """Return how strongly something begins, [frames], a hundred times a second."""
    import librosa

    return librosa.onset.onset_strength(
        y=_mono(samples), sr=LISTENING_RATE, hop_length=HOP, aggregate=np.median
    )


def tempo(samples: np.ndarray) -> float:
    """Return the tempo in BPM, 0 where nothing beats.

    The onsets' autocorrelation is read at the first eight beats of each tempo from 40 to 220, in steps of half a
    percent, and at its half beats. What comes after two or four thirds of a beat speaks against it: then the beat is
    another, of which three are two of this one's. All is weighted by how usual the tempo is (around 115, two octaves
    wide). Of 144 renderings of 20 s it finds the tempo of all, without half beats and thirds of 133.
    """
    strength = pulse(samples)
    strength = strength - strength.mean()
    size = len(strength)
    spectrum = np.fft.rfft(strength, 2 * size)
    correlation = np.fft.irfft(spectrum * spectrum.conj())[:size]
    if correlation[0] <= 0:
        return 0.0
    correlation = correlation / correlation[0] * size / np.arange(size, 0, -1)
    candidates = SLOWEST * 1.005 ** np.arange(int(np.log(FASTEST / SLOWEST) / np.log(1.005)) + 1)
    beat = 60 / candidates * LISTENING_RATE / HOP

    def after(beats: np.ndarray | float) -> np.ndarray:
        """Return how alike the piece and itself are so many beats later, for each tempo."""
        return np.interp(np.multiply.outer(beats, beat), np.arange(size), correlation)

    whole = np.arange(1, 9)
    reached = np.outer(whole, beat) < 0.8 * size
    score = (after(whole) * reached).sum(axis=0) / np.maximum(reached.sum(axis=0), 1)
    score += 0.25 * after(1 / 2) + 0.125 * after(3 / 2)
    score -= np.maximum(after(2 / 3), 0) + np.maximum(after(4 / 3), 0)
    score *= np.exp(-0.5 * (np.log2(candidates / 115) / 1.0) ** 2)
    return float(candidates[int(score.argmax())])


def tempo_error(measured: float, asked: float) -> tuple[float, float]:
    """Return (relative error, factor): the error to the nearest of half, the same and double the asked tempo."""
    factor = min((0.5, 1.0, 2.0), key=lambda f: abs(measured / (asked * f) - 1))
    return abs(measured / (asked * factor) - 1), factor


# --- key ----------------------------------------------------------------------------------------------------------


def chroma(samples: np.ndarray) -> np.ndarray:
    """Return how much each of the twelve semitones sounds, from C, [12], summing to one.

    Only what rises above its neighbours counts, which drums do not, by its root, so that quiet notes count too.
    """
    import librosa

    heard = np.abs(
        librosa.cqt(
            y=_mono(samples),
            sr=LISTENING_RATE,
            hop_length=512,
            fmin=librosa.note_to_hz("C2"),
            n_bins=12 * OCTAVES,
        )
    )
    around = np.pad(heard, ((1, 1), (0, 0)))
    below, above = around[:-2], around[2:]
    is_peak = (heard > below) & (heard > above)
    notes = np.sqrt(np.where(is_peak, np.maximum(heard - (below + above) / 2, 0), 0)).mean(axis=1)
    energy = notes.reshape(OCTAVES, 12).sum(axis=0)
    return energy / max(float(energy.sum()), 1e-9)


def key_ranking(samples: np.ndarray) -> list[str]:
    """Return the 24 keys, best first, that `samples` [2, n] may be in."""
    return rank_keys(chroma(samples))


def rank_keys(pitches: np.ndarray) -> list[str]:
    """Return the 24 keys, best first, by the correlation of a chroma, `pitches` [12], with the keys' profiles."""
    scores = {
        f"{note} {scale}": float(np.corrcoef(pitches, np.roll(profile, pitch))[0, 1])
        for scale, profile in PROFILES.items()
        for pitch, note in enumerate(NOTES)
    }
    return sorted(scores, key=lambda key: -np.nan_to_num(scores[key], nan=-1.0))


def key_match(found: str, asked: str) -> str:
    """Return "same", "relative" or "other"; `asked` may be spelled with flats. Raises ValueError unless it is a key."""
    key = _parse_key(found)
    wanted, wanted_scale = _parse_key(asked)
    if key == (wanted, wanted_scale):
        return "same"
    if wanted_scale == "major":
        relative = ((wanted + 9) % 12, "minor")
    else:
        relative = ((wanted + 3) % 12, "major")
    if key == relative:
        return "relative"
    return "other"


def _parse_key(key: str) -> tuple[int, str]:
    """Return (semitones over C, "major" or "minor") of a key like "Bb minor"."""
    note, _, scale = key.partition(" ")
    if scale not in PROFILES or note[1:] not in ("", "#", "b"):
        raise ValueError(f'A key reads "A minor" or "F# major", not "{key}".')
    natural = NOTES.index(note[:1])
    return (natural + note.count("#") - note.count("b")) % len(NOTES), scale


# --- form ---------------------------------------------------------------------------------------------------------

KERNEL_BARS = 4
"""How many bars on each side are compared to find out whether a section begins."""
PARTS_OF_A_BAR = 8


def bars_heard(samples: np.ndarray, bar_seconds: float, bars: int) -> np.ndarray:
    """Return what is heard in each bar, [bars, features]: timbre, pitches, and where in it something begins.

    Each feature has mean 0 and spread 1 over the piece, and each of the three kinds counts alike.
    """
    import librosa

    mono = _mono(samples)
    hop = HOP * 2
    mels = librosa.feature.melspectrogram(y=mono, sr=LISTENING_RATE, n_mels=32, hop_length=hop)
    kinds = (
        librosa.power_to_db(mels, ref=np.max, top_db=60),
        librosa.feature.chroma_stft(y=mono, sr=LISTENING_RATE, hop_length=hop),
    )
    at = np.arange(bars * PARTS_OF_A_BAR + 1) * bar_seconds / PARTS_OF_A_BAR
    begun = np.add.reduceat(
        np.append(pulse(samples), 0.0), _frames(at[:-1], HOP, len(pulse(samples)))
    ).reshape(bars, PARTS_OF_A_BAR)
    found = [_standard(begun)]
    starts = _frames(at[:-1:PARTS_OF_A_BAR], hop, kinds[0].shape[1])
    for kind in kinds:
        sums = np.add.reduceat(kind, starts, axis=1)
        lengths = np.diff(np.append(starts, kind.shape[1]))
        found.append(_standard((sums / np.maximum(lengths, 1)).T))
    return np.concatenate([each / np.sqrt(each.shape[1]) for each in found], axis=1)


def _frames(seconds: np.ndarray, hop: int, count: int) -> np.ndarray:
    return np.minimum(np.round(seconds * LISTENING_RATE / hop).astype(int), count - 1)


def _standard(features: np.ndarray) -> np.ndarray:
    return (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)


def sections_begin(heard: np.ndarray, count: int) -> list[int]:
    """Return the `count` bars where sections most likely begin: those before are alike, and those from there on.

    Foote 2000, "Automatic audio segmentation using a measure of audio novelty": a checkerboard with soft edges along
    the diagonal of the matrix of similarities. Two sections begin two bars apart at least.
    """
    lengths = np.linalg.norm(heard, axis=1) + 1e-9
    alike = heard @ heard.T / np.outer(lengths, lengths)
    sides = np.arange(-KERNEL_BARS, KERNEL_BARS) + 0.5
    soft = np.exp(-0.5 * (sides / (KERNEL_BARS / 2)) ** 2) * np.sign(sides)
    kernel = np.outer(soft, soft)
    padded = np.pad(alike, KERNEL_BARS)
    size = 2 * KERNEL_BARS
    news = [
        float((padded[bar : bar + size, bar : bar + size] * kernel).sum())
        for bar in range(len(heard))
    ]
    found: list[int] = []
    for bar in np.argsort(news)[::-1].tolist():
        if bar > 0 and len(found) < count and all(abs(bar - other) > 1 for other in found):
            found.append(bar)
    return sorted(found)


# --- style --------------------------------------------------------------------------------------------------------


def traits(samples: np.ndarray) -> np.ndarray:
    """Return what a piece's style shows in, [features]: timbre, brightness, density of onsets, width, level."""
    import librosa

    mono = _mono(samples)
    power = np.abs(librosa.stft(mono, n_fft=1024, hop_length=HOP * 2)) ** 2
    mels = librosa.power_to_db(
        librosa.feature.melspectrogram(S=power, sr=LISTENING_RATE, n_mels=48), top_db=80
    )
    timbre = librosa.feature.mfcc(S=mels, n_mfcc=20)
    strength = pulse(samples)
    sharp = strength / max(float(strength.mean()), 1e-9)
    spectrum = np.abs(np.fft.rfft(sharp - sharp.mean(), 4096))[1:400]
    bands = [float(np.log1p(part.sum())) for part in np.array_split(spectrum, 16)]
    middle = samples.mean(axis=0)
    side = samples[0] - samples[1]
    width = float(np.log10((side.std() + 1e-6) / (middle.std() + 1e-6)))
    crest = float(np.log10((np.abs(mono).max() + 1e-6) / (mono.std() + 1e-6)))
    flat = librosa.feature.spectral_flatness(S=power + 1e-12, power=1.0)
    return np.concatenate(
        [
            timbre.mean(axis=1),
            timbre.std(axis=1),
            np.abs(np.diff(timbre, axis=1)).mean(axis=1),
            bands,
            [
                width,
                crest,
                float(sharp.std()),
                float(np.log(flat.mean() + 1e-9)),
                float(np.log(flat.std() + 1e-9)),
            ],
        ]
    )


@dataclass(frozen=True)
class Classifier:
    """A linear classifier of styles: softmax of `weights` [styles, features + 1] on standardised traits."""

    names: tuple[str, ...]
    mean: np.ndarray
    spread: np.ndarray
    weights: np.ndarray

    def judge(self, features: np.ndarray) -> str:
        """Return the likeliest style of traits [features]."""
        logits = self.weights[:, :-1] @ ((features - self.mean) / self.spread) + self.weights[:, -1]
        return self.names[int(logits.argmax())]

    def style(self, samples: np.ndarray) -> str:
        """Return the likeliest style of samples [2, n]."""
        return self.judge(traits(samples))


def train_classifier(features: np.ndarray, styles: list[str], decay: float = 0.001) -> Classifier:
    """Fit a classifier to traits [pieces, features]: logistic regression with weight decay, by L-BFGS."""
    import torch

    names = tuple(sorted(set(styles)))
    mean = features.mean(axis=0)
    spread = features.std(axis=0) + 1e-6
    x = torch.from_numpy((features - mean) / spread).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.double)], dim=1)
    y = torch.tensor([names.index(style) for style in styles])
    weights = torch.zeros(len(names), x.shape[1], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (
            torch.nn.functional.cross_entropy(x @ weights.T, y)
            + decay * weights[:, :-1].square().sum()
        )
        value.backward()
        return value

    optimizer.step(loss)
    return Classifier(names, mean, spread, weights.detach().numpy())


def _mono(samples: np.ndarray) -> np.ndarray:
    import soxr

    return soxr.resample(samples.mean(axis=0).astype(np.float32), SAMPLE_RATE, LISTENING_RATE, "LQ")
