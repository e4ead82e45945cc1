"""A visitor's actions on a tab, and checks that all tabs share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from gradio import utils as gradio_utils
from playwright.sync_api import Locator, Page, expect

import tooltips
from limits import SCORE_PARTS
from params import LoraChoice

MARKUP = '<img src=x onerror="document.title=1"> <b>bold</b> {{value}} ${1+1}'
WITHOUT_TEMPO = tuple(part for part in SCORE_PARTS if part != "tempo")
# The controls of every song tab: how a visitor sets each, and the value in the request.
SHARED = {
    "prompt": ("type", "brass band", "brass band"),
    "lyrics": ("type", "[Verse]\nla la", "[Verse]\nla la"),
    "instrumental": ("tick", True, True),
    "bpm": ("type", "90", 90),
    "key": ("choose", "F# minor", "F# minor"),
    "time_signature": ("pick", "3/4", "3"),
    "language": ("choose", "Japanese", "ja"),
    "takes": ("pick", "2", 2),
    "options.model": ("pick", "Stems", "base"),
    "quality": ("pick", "Draft, 20 steps", "draft"),
    "seed": ("type", "0", 0),
    "options.steps": ("type", "8", 8),
    "options.guidance": ("type", "3.5", 3.5),
    "options.shift": ("type", "2,5", 2.5),
    "options.sampler": ("pick", "With fresh noise (SDE)", "sde"),
    "options.cfg_start": ("slide", "0.25", 0.25),
    "options.cfg_end": ("slide", "0.75", 0.75),
    "options.format": ("pick", "FLAC, 24 bit", "flac"),
    "options.loudness": ("type", "-14", -14.0),
    "options.fade_out": ("slide", "2.5", 2.5),
    "options.variation": ("slide", "0.3", 0.3),
    "options.variation_seed": ("type", "11", 11),
    "options.best_of": ("type", "5", 5),
    "options.score": ("unpick", "Tempo", WITHOUT_TEMPO),
    "options.timbre_token": ("tick", False, False),
    "options.memory_plan": ("choose", "One model at a time", "swap"),
    "options.loras": (
        "name",
        "org/jazz:a.safetensors",
        (LoraChoice(source="org/jazz:a.safetensors", weight=1),),
    ),
}
# The buttons of a take that are not in its menu.
VERBS = {"More like this": "More like", "Use in Extend": "Extend"}
# The folded groups of a tab, each with a field that shows whether it is open.
FOLDS = {"details": "takes", "sound": "options.fade_out", "engine": "options.timbre_token"}
GENERATE_FOLDS = {
    "sound": "options.fade_out",
    "plan-fold": "options.plan",
    "engine": "options.timbre_token",
}
# What is behind Fine-tune in Edit.
FINE = ("start", "end", "regions", "options.repaint_mode", "options.repaint_strength")
LYRICS_FOLDS = {"advanced": "seed"}
OF_TABS = {"generate": GENERATE_FOLDS, "lyrics": LYRICS_FOLDS}


def read(request: Any, name: str) -> Any:
    """Return a field of a request, such as "options.steps"; the one track is its tracks."""
    for part in {"track": "tracks"}.get(name, name).split("."):
        request = getattr(request, part)
    return request


def violations(page: Page) -> list[str]:
    """Return what axe-core calls serious or critical, one line per element."""
    # It need not describe each element that passes a rule, which takes half of its time.
    found = Axe().run(page, options={"resultTypes": ["violations"]})
    return [
        f"{rule['id']} at {' '.join(map(str, node['target']))}: {node['html'][:120]}"
        for rule in found.response["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def fits(page: Page) -> bool:
    """Tell whether nothing is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


# The controls whose ring of the focus is cut off by what is around them.
CUT_RINGS = """() => {
  const controls = document.querySelectorAll("button, input, textarea, [tabindex='0']");
  const seen = [...controls].filter((each) => each.checkVisibility() && !each.disabled && each.offsetWidth > 2);
  return seen.filter((control) => {
    control.focus({ preventScroll: true });
    const look = getComputedStyle(control);
    if (document.activeElement !== control || look.outlineStyle === "none") return false;
    const out = parseFloat(look.outlineOffset) + parseFloat(look.outlineWidth);
    const { left, top, right, bottom } = control.getBoundingClientRect();
    for (let around = control.parentElement; around !== document.body; around = around.parentElement) {
      const { overflow } = getComputedStyle(around);
      // Of what can be scrolled, only groups, which never are.
      if (overflow !== "hidden" && !(overflow === "auto" && around.matches(".block"))) continue;
      const box = around.getBoundingClientRect();
      const [x, y] = [box.left + around.clientLeft, box.top + around.clientTop];
      const room = [left - x, top - y, x + around.clientWidth - right, y + around.clientHeight - bottom];
      if (Math.min(...room) < out - 0.5) return true;
    }
    return false;
  }).map((control) => `${control.closest(".block[id]")?.id} ${control.ariaLabel ?? control.textContent}`);
}"""


def cut_rings(page: Page) -> list[str]:
    """Return the controls whose focus is not seen whole, each with the block it is in."""
    page.keyboard.press("Tab")
    return page.evaluate(CUT_RINGS)


# The fields of open groups that stand beside another one whose name, box or slider is not level with theirs.
UNEVEN = """() => {
  const wrong = [];
  const firsts = {};
  for (const field of document.querySelectorAll(".fold :is(.field, .numeric)")) {
    if (!field.checkVisibility()) continue;
    const row = `${field.parentElement.closest(".column").parentElement.parentElement.id} ${field.offsetTop}`;
    const first = (firsts[row] ??= {});
    const parts = {
      name: field.querySelector("[data-testid='block-info']")?.getBoundingClientRect().top,
      box: field.querySelector("input[type='text'], div:has(> div > div > input[role='combobox'])")?.offsetHeight,
      slider: field.querySelector("input[type='range']")?.getBoundingClientRect().top,
    };
    for (const [part, at] of Object.entries(parts)) {
      if (at === undefined) continue;
      first[part] ??= at;
      if (Math.abs(first[part] - at) > 0.5) wrong.push(`${field.id}: its ${part} at ${at}, not ${first[part]}`);
    }
  }
  return wrong;
}"""


def expect_tappable(*controls: Locator) -> None:
    for control in filter(Locator.is_visible, controls):
        box = control.bounding_box()
        assert min(box["width"], box["height"]) >= 44, control


def expect_plain(page: Page) -> None:
    """Expect that no text of others became an element of the page."""
    expect(page).to_have_title("ACE Music Studio")
    # The region on a waveform has bold numbers of its own.
    expect(
        page.locator(".gradio-container b:not([data-shows]), .gradio-container img[src=x]")
    ).to_have_count(0)


GERMAN = """for (const [name, value] of [["language", "de"], ["languages", ["de"]]])
  Object.defineProperty(navigator, name, { get: () => value });"""


def in_german(page: Page) -> None:
    """Open the page again in a browser whose language is German, which Gradio speaks as well."""
    page.add_init_script(GERMAN)
    reload(page)


def reload(page: Page) -> None:
    page.reload()
    expect(page.locator("#studio-status")).to_contain_text("Model:")


class Tab:
    """A tab of an open page."""

    def __init__(self, page: Page, mode: str):
        self.page, self.mode = page, mode
        page.get_by_role("tab", name=mode.capitalize(), exact=True).click()
        self.go = page.locator(f"#{mode}-go")
        self.progress = page.locator(f"#{mode}-progress")
        expect(self.go).to_be_visible()

    def part(self, name: str) -> Locator:
        return self.page.locator(f"#{self.mode}-{name}")

    def field(self, name: str) -> Locator:
        """Return a field, such as "options.steps"."""
        return self.part(name.rpartition(".")[2].replace("_", "-"))

    def unfold(self, *groups: str, opened: bool = True) -> None:
        """Open these folded groups, which takes a page a while, or without any all of them and what is behind chips."""
        if not groups:
            self.open_chips(opened)
        folds = OF_TABS.get(self.mode, FOLDS)
        for name in groups or folds:
            inside = folds[name]
            if self.field(inside).is_visible() != opened:
                self.page.locator(f"#{self.mode}-{name} > button").click()
                expect(self.field(inside)).to_be_visible(visible=opened)
                # Gradio loses text typed while it builds the group. A page that is never idle hangs here.
                twice = (
                    "new Promise((done) => requestIdleCallback(() => requestIdleCallback(done)))"
                )
                self.page.evaluate(twice)

    def reset(self) -> Tab:
        """Put in the defaults, but for files, and "a song" as the first words."""
        words = self.text("brief" if self.mode == "lyrics" else "prompt")
        words.fill("old")
        self.part("reset").click()
        expect(words).to_have_value("")
        words.fill("a song")
        return self

    def set(self, name: str, how: str, value: Any) -> Any:
        """Set a control; return its former value."""
        self.open_chip(name)
        field, before = self.field(name), None
        if how in ("type", "slide"):
            control = field.locator("textarea, input" if how == "type" else "input[type=number]")
            before = control.input_value()
            control.fill(value)
            control.blur()
        elif how == "tick" and (self.mode, name) == ("generate", "instrumental"):
            before = self.voice().is_checked()
            self.words("No voice" if value else "My own").click()
            expect(self.voice()).to_be_checked(checked=value)
        elif how == "tick":
            before = field.get_by_role("checkbox").is_checked()
            field.get_by_role("checkbox").set_checked(value)
        elif how == "pick":
            checked = field.locator("label:has(input:checked)")
            before = checked.first.inner_text() if checked.count() else None
            field.get_by_label(value, exact=True).check()
        elif how == "unpick":
            field.get_by_label(value, exact=True).uncheck()
        elif how == "choose":
            control = field.get_by_role("combobox")
            before = control.input_value()
            control.click()
            field.get_by_role("option").filter(has_text=value).first.click()
            expect(control).to_have_value(re.compile(f"^{re.escape(value)}"))
        elif how == "name":
            self.name_lora(value)
        else:
            self.clear(name)
            if value is not None:
                field.locator("input[type=file]").set_input_files(value)
                expect(field.locator("time").last).to_have_text(re.compile(r"\d:\d\d"))
        return before

    def open_chips(self, opened: bool) -> None:
        """Open the fields behind chips and Edit's exact settings, or close them."""
        for chip in self.part("strip").locator("[data-opens]").all():
            if chip.is_visible() and chip.get_attribute("aria-expanded") != str(opened).lower():
                chip.click()
        if self.mode == "edit":
            self.fine_tune(opened)

    def open_chip(self, name: str) -> None:
        """Open a field that is behind a chip, or one of Edit's exact settings."""
        if self.mode == "edit" and name in FINE:
            self.fine_tune()
        chip = self.part("strip").locator(f"[data-opens='{name}'][aria-expanded=false]")
        if chip.is_visible():
            chip.click()

    def controls_in_sight(self) -> int:
        found = self.part("panel").locator("button, input, textarea, a, summary")
        return len([each for each in found.all() if each.is_visible()])

    def fine_tune(self, opened: bool = True) -> None:
        """Show the exact settings of Edit, or hide them."""
        summary = self.part("fine").locator("summary")
        fold = self.part("fine").locator("details")
        if summary.is_visible() and (fold.get_attribute("open") is not None) != opened:
            summary.click()

    def words(self, name: str) -> Locator:
        """Return a button of the choice of Generate's words, such as "My own"."""
        return self.part("words-choice").get_by_role("button", name=name, exact=True)

    def voice(self) -> Locator:
        """Return the box that No voice ticks, which nobody sees."""
        return self.field("instrumental").get_by_role("checkbox", include_hidden=True)

    def choose(self, action: str) -> None:
        """Choose an action of Edit, from More if it is there."""
        option = self.field("action").locator(f"label:has(input[value={action}])")
        expect(self.part("hints")).to_contain_text("Replaces the part that you mark.")
        if not option.is_visible():
            self.part("hints").locator("summary").click()
        option.click()

    def name_lora(self, name: str | None) -> None:
        """Add a LoRA of the hub, or remove the only one."""
        if not self.part("loras").is_visible():
            self.part("loras-fold").locator("> button").click()
        loras = self.part("loras").get_by_role("listitem")
        if name is None:
            loras.get_by_role("button", name="Remove").click()
            expect(loras).to_have_count(0)
        else:
            self.part("lora-hub").locator("textarea, input").fill(name)
            self.part("lora-hub-add").click()
            expect(loras.last).to_contain_text(name)

    def clear(self, name: str) -> None:
        """Take the file out of an audio field, if it has one."""
        button = self.field(name).get_by_role("button", name=tooltips.SCRIPT_TEXTS["change"])
        if not button.is_visible():
            # The message at a wrong file has a second button, over the first.
            button = self.field(name).locator("button[aria-haspopup]").last
        if button.is_visible():
            button.click()
        expect(self.field(name).locator("input[type=file]")).to_have_count(1)

    def set_all(self, controls: dict[str, tuple[str, Any, Any]]) -> None:
        self.unfold()
        for name, (how, value, _) in controls.items():
            self.set(name, how, value)

    def text(self, name: str) -> Locator:
        self.open_chip(name)
        return self.field(name).locator("textarea, input")

    def take(self, number: int = 1) -> Locator:
        return self.part(f"take-{number}")

    def song(self) -> Locator:
        """Return the song that the tab made last, with its takes."""
        return self.page.locator(f"section.song:has(> #{self.mode}-take-1)")

    def has(self, seed: int, number: int = 1) -> None:
        """Wait until a take has this seed."""
        expect(self.take(number)).to_have_attribute("data-seed", str(seed))

    def way(self, name: str, number: int = 1) -> Locator:
        """Return a button of a take, from its menu, which it opens, unless it is one of those that are in sight."""
        letter = "ABCD"[number - 1]
        if name in VERBS:
            # They are about the take that had the focus last.
            self.take(number).locator("summary").focus()
            verbs = self.song().locator("> .verbs")
            return verbs.get_by_role("button", name=f"{VERBS[name]} {letter}", exact=True)
        menu = self.take(number).locator(".menu")
        if menu.get_attribute("open") is None:
            menu.locator("summary").click()
        return menu.get_by_role("button", name=re.compile(rf"^{name}, take {letter}$"))

    def plays(self, name: str = "Pause") -> Locator:
        """Return the player's button, which says Pause while it plays."""
        return self.page.get_by_role("region", name="Player").get_by_role(
            "button", name=name, exact=True
        )

    def start(self, words: str = "a song") -> None:
        self.text("brief" if self.mode == "lyrics" else "prompt").fill(words)
        self.go.click()

    def runs(self) -> None:
        expect(self.progress).to_contain_text("step 3 of 50")

    def cancel(self) -> None:
        self.part("cancel").click()
        self.idle()

    def idle(self) -> None:
        expect(self.go).to_be_enabled()
        expect(self.part("cancel")).to_be_disabled()

    def made(self, fake: Any) -> Any:
        """Press the button and return the request that reached the fake backend."""
        seed = 100 * (fake.songs + 1)
        self.go.click()
        self.has(seed)
        return fake.requests[-1]

    def download(self, kind: str = "WAV") -> Path:
        """Press the button, wait for a new first take, and return its downloaded file."""
        take = self.take()
        former = take.get_attribute("data-take") if take.is_visible() else ""
        self.go.click()
        expect(take).not_to_have_attribute("data-take", former)
        return self.downloaded(kind)

    def downloaded(self, kind: str = "WAV", number: int = 1) -> Path:
        """Return the file that a take's menu downloads."""
        button = self.way(f"Download {kind}", number)
        with self.page.expect_download() as download:
            button.click()
        path = Path(download.value.path()).with_name(download.value.suggested_filename)
        download.value.save_as(path)
        return path


def making(page: Page, mode: str = "generate") -> Locator:
    """Return the cards of the songs that are being made."""
    return page.locator(f"#{mode}-takes-made .making")


def takes(page: Page, mode: str = "generate") -> Locator:
    """Return the takes of the songs that are open."""
    return page.locator(f"#{mode}-takes-made .list .take")


def songs(page: Page, mode: str = "generate") -> Locator:
    return page.locator(f"#{mode}-takes-made .song")


def song_without_copy(generate: Tab, fake: Any) -> Path:
    """Make a song, delete the copy that Gradio serves, and return the file in the output folder."""
    generate.set("prompt", "type", "a song")
    generate.made(fake)
    song = fake.folder / f"song-seed-{100 * fake.songs}.wav"
    (copy,) = copies_of(song.name)
    copy.unlink()
    return song


def copies_of(name: str) -> list[Path]:
    """Return the copies of a take of this name that Gradio serves."""
    return list(Path(gradio_utils.get_upload_folder()).glob(f"*/{name}"))
