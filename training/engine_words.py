"""What a checkpoint of the built-in engine knows, for the file beside it: python -m training words FOLDER

Keys and tempos come from the band, so that they are those of its captions. The words are those of the captions and what
the same is called in the languages that visitors write in. A word that ends in * stands for all that begin so.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from song_words import FILE
from training.band_score import BPM_RANGE, NOTE_NAMES, SCALES
from training.band_styles import SCALE_WORDS, STYLES, TEMPO_WORDS

USUAL_TEMPO = (76, 132)
METRES = {"2": "4", "3": "3", "4": "4", "6": "3"}
"""The metre that the band plays for each time signature of the studio."""
SPEEDS = {"slow": (60, 84), "fast": (136, 172)}

# fmt: off
SPEED_NAMES = {
    "slow": (
        "slow", "slowly", "downtempo", "leisurely", "langsam*", "lent", "lente", "lento", "lenta", "despacio",
        "devagar", "медленн*", "ゆっくり", "スロー", "遅い", "慢速", "缓慢", "舒缓", "느린", "느리*",
    ),
    "fast": (
        "fast", "faster", "quick", "uptempo", "schnell*", "rasch*", "rapide", "vite", "rápido", "rápida", "rápidamente",
        "veloce", "rapido", "rapida", "быстр*", "速い", "アップテンポ", "快速", "快节奏", "빠른", "빠르*",
    ),
}
SCALE_NAMES = {
    "major": (
        "major", "happy", "happily", "bright", "cheerful", "sunny", "joyful", "uplifting", "fröhlich*", "heiter*",
        "joyeux", "joyeuse", "gai", "gaie", "alegre", "feliz", "allegro", "allegra", "felice", "весел*", "радостн*",
        "明るい", "楽しい", "快乐", "欢快", "开心", "밝은", "신나는",
    ),
    "minor": (
        "minor", "sad", "sadly", "dark", "moody", "melanchol*", "sombre", "somber", "gloomy", "sorrowful", "traurig*",
        "düster*", "triste", "mélancol*", "melancól*", "melancôl*", "malincon*", "sombrío", "sombría", "oscuro",
        "oscura", "sombrio", "sombria", "грустн*", "печальн*", "мрачн*", "悲しい", "暗い", "切ない", "悲伤", "忧伤",
        "黑暗", "슬픈", "어두운",
    ),
}
STYLE_NAMES = {
    "lofi": ("chill hop", "lofi-hiphop", "hip hop", "hiphop", "ローファイ", "低保真", "로파이"),
    "house": ("edm", "dance", "clubmusik", "haus-musik", "ハウス", "浩室", "하우스"),
    "techno": ("tecno", "trance", "テクノ", "高科技舞曲", "铁克诺", "테크노", "техно"),
    "ambient": (
        "ambiental", "ambiance", "atmosphärisch*", "soundscape", "アンビエント", "氛围", "环境音乐", "앰비언트",
        "эмбиент",
    ),
    "chiptune": ("chip tune", "chiptunes", "8 bits", "8bit", "16-bit", "チップチューン", "芯片音乐", "칩튠", "чиптюн"),
    "rock": (
        "rock'n'roll", "rock and roll", "rockmusik", "rockig*", "rockband", "rocksong", "rockero", "punk", "grunge",
        "metal", "heavy metal", "hardrock", "métal", "メタル", "金属乐", "메탈", "метал*",
        "ロック", "ロックバンド", "摇滚", "搖滾", "록", "락", "рок",
    ),
    "waltz": (
        "waltzes", "walzer", "valse", "valses", "vals", "valsa", "valzer", "вальс*", "ワルツ", "华尔兹", "圆舞曲",
        "왈츠", "wals", "walc",
    ),
    "funk": ("funky", "funkig*", "disco", "ファンク", "放克", "펑크 그루브", "훵크", "фанк"),
    "reggae": ("dubwise", "ska", "レゲエ", "雷鬼", "레게", "регги"),
    "drum and bass": ("drum'n'bass", "drum n bass", "d'n'b", "d&b", "ドラムンベース", "鼓打贝斯", "드럼 앤 베이스"),
    "country": ("country-musik", "westernmusik", "カントリー", "乡村音乐", "컨트리", "кантри"),
    "cinematic": (
        "filmmusik", "orchester", "orchestral*", "orquestal", "orquestral", "musique de film", "banda sonora",
        "trilha sonora", "colonna sonora", "映画音楽", "オーケストラ", "电影配乐", "管弦乐", "영화 음악", "саундтрек",
    ),
}
# fmt: on


def words_of_the_engine() -> dict[str, Any]:
    """Return what `song_words.read_words` reads."""
    return {
        "keys": [f"{name} {scale}" for names in NOTE_NAMES for name in names for scale in SCALES],
        "metres": METRES,
        "tempo": BPM_RANGE,
        "usual_tempo": USUAL_TEMPO,
        "speeds": [
            {"bpm": bpm, "words": _joined(TEMPO_WORDS[speed], SPEED_NAMES[speed])}
            for speed, bpm in SPEEDS.items()
        ],
        "styles": [
            {
                "bpm": how.bpm,
                "time_signature": str(statistics.mode(how.beats)),
                "words": _joined(how.words, STYLE_NAMES[style]),
            }
            for style, how in STYLES.items()
        ],
        "scales": {scale: _joined(SCALE_WORDS[scale], SCALE_NAMES[scale]) for scale in SCALES},
    }


def _joined(words: str, names: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys([*words.split(", "), *names]))


def write_words(folder: Path) -> Path:
    """Write the file beside the checkpoint in `folder` and return its path."""
    path = folder / FILE
    path.write_text(
        json.dumps(words_of_the_engine(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return path


def main() -> None:
    """Write the file again, after words were added."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the checkpoint's folder")
    print(write_words(parser.parse_args().folder))


if __name__ == "__main__":
    main()
