"""How the studio looks: warm stone neutrals with one jade accent, as a Gradio theme and a few rules of our own.

Every colour stands once, in `TOKENS`; theme variables and the style sheet take them from there. Fonts come with Gradio,
so that no page asks another machine for one.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.themes.utils import fonts
from gradio.themes.utils.colors import Color
from gradio.themes.utils.sizes import Size

STATIC = Path(__file__).with_name("static")
# Those in the page's head; the first one makes the object that the others add to.
SCRIPTS = (
    *("studio", "folds", "changes", "faces", "progress", "advice", "loras", "player", "takes", "examples"),
    *("latest", "listen", "zoom", "beats"),
)

# name: (light, dark)
TOKENS = {
    "bg": ("#FAF8F5", "#131211"),
    "surface": ("#FFFFFF", "#1C1A18"),
    "raised": ("#F3EFEA", "#26231F"),
    "ink": ("#1C1917", "#F4F1ED"),
    "ink-2": ("#453F39", "#C9C2BA"),
    "muted": ("#665E57", "#A8A097"),
    "line": ("#DED7CF", "#3A3630"),
    "line-strong": ("#857C73", "#7C746B"),
    "accent": ("#0B6B5D", "#5CC8B4"),
    "accent-hover": ("#095A4E", "#7BD8C7"),
    "on-accent": ("#FFFFFF", "#06211C"),
    "danger": ("#B42318", "#FF8F80"),
    "warn": ("#8A5A00", "#F2C14E"),
    "ok": ("#12703F", "#7FD69B"),
    "focus": ("#0B6B5D", "#9BE7D8"),
}

# Theme variables by the token that colours them, in light and dark.
COLOURS = {
    "bg": "body_background_fill background_fill_secondary",
    "surface": """
        background_fill_primary block_background_fill block_label_background_fill panel_background_fill
        table_even_background_fill error_background_fill
    """,
    "raised": """
        input_background_fill input_background_fill_focus input_background_fill_hover
        checkbox_background_color checkbox_background_color_focus checkbox_background_color_hover
        checkbox_label_background_fill checkbox_label_background_fill_hover
        checkbox_label_background_fill_selected button_secondary_background_fill
        button_cancel_background_fill code_background_fill color_accent_soft table_odd_background_fill
        table_row_focus
    """,
    "ink": """
        body_text_color accordion_text_color table_text_color button_secondary_text_color
        button_secondary_text_color_hover checkbox_label_text_color checkbox_label_text_color_selected
    """,
    "ink-2": "block_title_text_color block_label_text_color",
    # neutral_400 is the players' buttons and times, neutral_200 the sliders' tracks.
    "muted": "body_text_color_subdued block_info_text_color input_placeholder_color neutral_400",
    "line": """
        neutral_200 border_color_primary block_border_color block_label_border_color panel_border_color
        table_border_color button_secondary_background_fill_hover button_cancel_background_fill_hover
    """,
    "line-strong": """
        input_border_color input_border_color_hover checkbox_border_color checkbox_border_color_hover
        checkbox_label_border_color checkbox_label_border_color_hover button_secondary_border_color
        button_secondary_border_color_hover
    """,
    "accent": """
        color_accent border_color_accent border_color_accent_subdued link_text_color link_text_color_active
        link_text_color_visited loader_color slider_color stat_background_fill
        checkbox_background_color_selected checkbox_border_color_selected
        checkbox_label_border_color_selected button_primary_background_fill button_primary_border_color
    """,
    "accent-hover": "link_text_color_hover button_primary_background_fill_hover button_primary_border_color_hover",
    "on-accent": "button_primary_text_color button_primary_text_color_hover",
    "danger": """
        error_border_color error_icon_color error_text_color button_cancel_border_color
        button_cancel_border_color_hover button_cancel_text_color button_cancel_text_color_hover
    """,
    "focus": "input_border_color_focus checkbox_border_color_focus",
}


def _scale(name: str, colours: str) -> Color:
    return Color(*colours.split(), name=name)


STONE = _scale("stone", "#FAF8F5 #F3EFEA #DED7CF #C9C2BA #A8A097 #857C73 #665E57 #453F39 #26231F #1C1A18 #131211")
JADE = _scale("jade", "#E7F4F1 #CDEBE4 #9BE7D8 #7BD8C7 #5CC8B4 #0B6B5D #095A4E #08493F #063A32 #06211C #041712")
# Players draw on a canvas, which knows no theme: these two stand out from either surface.
WAVEFORM = gr.WaveformOptions(waveform_color="#857C73", waveform_progress_color="#2E9485", skip_length=5)
SPACING = Size("2px", "4px", "4px", "8px", "8px", "12px", "16px", name="studio_spacing")
RADIUS = Size("2px", "4px", "8px", "8px", "12px", "12px", "16px", name="studio_radius")
TEXT = Size("12px", "13px", "14px", "16px", "17px", "22px", "28px", name="studio_text")


def theme() -> gr.themes.Base:
    made = gr.themes.Base(
        primary_hue=JADE,
        secondary_hue=JADE,
        neutral_hue=STONE,
        spacing_size=SPACING,
        radius_size=RADIUS,
        text_size=TEXT,
        # Not 600: the semibold files that Gradio brings lack most letters.
        font=(fonts.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=(fonts.LocalFont("IBM Plex Mono", weights=(400,)), "ui-monospace", "monospace"),
    )
    made.name = "ace-music-studio"
    made.set(
        block_radius="*radius_lg",
        block_title_text_size="*text_sm",
        block_title_text_weight="600",
        block_label_text_size="*text_sm",
        block_info_text_size="*text_xs",
        checkbox_border_radius="4px",
        checkbox_label_text_size="*text_sm",
        checkbox_label_padding="11px 14px",
        input_radius="*radius_sm",
        input_border_width="1px",
        button_border_width="1px",
        button_large_radius="*radius_sm",
        button_large_text_size="*text_md",
        button_medium_radius="*radius_sm",
        button_medium_padding="11px 16px",
        button_medium_text_size="*text_sm",
        button_small_radius="*radius_sm",
        button_small_padding="8px 14px",
        button_small_text_size="*text_sm",
    )
    for token, names in COLOURS.items():
        light, dark = TOKENS[token]
        for name in names.split():
            # Not through set(): it knows no dark twin of some variables, and every attribute becomes a CSS variable.
            setattr(made, name, light)
            setattr(made, f"{name}_dark", dark)
    return made


def static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def script(name: str) -> str:
    """Return what a component runs when it is built, for one of our scripts in the page's head."""
    return f"studio.{name}(element, props, trigger, watch)"


def css() -> str:
    """Return our style sheet: the tokens as --studio-* variables, then the rules in static/."""
    sides = [";".join(f"--studio-{name}:{pair[side]}" for name, pair in TOKENS.items()) for side in (0, 1)]
    rules = "\n".join(static(name) for name in ("studio.css", "faces.css", "takes.css", "latest.css"))
    return f":root{{{sides[0]}}}\n:root.dark,:root .dark{{{sides[1]}}}\n{rules}"


def head() -> str:
    """Return what goes into the page's head: our scripts, inlined, so that they are there before anything is clicked.

    With them go the styles that Gradio must not change, and that of the player, which stands outside its frame.
    """
    scripts = "\n".join(static(f"{name}.js") for name in SCRIPTS)
    styles = "\n".join(static(f"{name}.css") for name in ("player", "motion"))
    return f"<script>\n{scripts}\n</script>\n<style>\n{styles}</style>"
