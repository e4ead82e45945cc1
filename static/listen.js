// Plays a part of a file: a button, a loop, and a playhead that is updated every frame. Nothing else plays meanwhile.
(() => {
  // The source's player is Gradio's, in a shadow tree that no event of it leaves.
  const { play: start } = HTMLMediaElement.prototype;
  let latest = null;
  HTMLMediaElement.prototype.play = function () {
    if (latest !== this) latest?.pause();
    latest = this;
    return start.call(this);
  };
  studio.isHeard = () => Boolean(latest) && !latest.paused && !latest.ended;

  // `part` returns the seconds to play, from and to; `moved` hears where the playhead is.
  studio.listen = (element, texts, { part, moved }) => {
    const find = (selector) => element.querySelector(selector);
    const [audio, play, loop] = ["audio", ".play", ".loop"].map(find);
    let cue = null; // seconds where a click put the playhead, and the next press begins
    let last = 0;
    let path;

    const playing = () => !audio.paused && !audio.ended;
    const looped = () => loop.getAttribute("aria-pressed") === "true";

    // A file is not requested before it is played.
    const here = () => (audio.readyState ? audio.currentTime : last);
    const put = (seconds) => {
      last = seconds;
      if (audio.hasAttribute("src")) audio.currentTime = seconds;
      show();
    };

    const show = () => {
      const state = playing() ? "pause" : "play";
      if (play.dataset.state !== state) {
        play.dataset.state = state;
        play.firstElementChild.outerHTML = studio.tools.icon(state);
        find(".word").textContent = texts[state];
      }
      moved(here(), playing());
    };

    // The end of the part is passed, or that of the file.
    const turn = () => {
      if (!looped()) audio.pause();
      put(part()[0]);
      if (looped() && audio.paused) audio.play().catch(() => {});
    };

    const follow = () => {
      if (playing() && !element.offsetParent) audio.pause();
      const now = here();
      const passed = playing() && last < part()[1] && now >= part()[1];
      last = now;
      if (passed) turn();
      show();
    };
    // A hidden window has no frames, but the file tells four times a second where it is.
    const frame = () => {
      follow();
      if (playing()) requestAnimationFrame(frame);
    };

    const toggle = () => {
      if (playing()) return audio.pause();
      const [start, end] = part();
      if (cue === null && !(here() > start && here() < end)) put(start);
      cue = null;
      if (!audio.hasAttribute("src")) {
        audio.src = studio.tools.address(path);
        audio.currentTime = last;
      }
      audio.play().catch(() => {}); // a file that cannot be played says so by its error event
    };

    play.addEventListener("click", toggle);
    loop.addEventListener("click", () => loop.setAttribute("aria-pressed", String(!looped())));
    audio.addEventListener("play", () => requestAnimationFrame(frame));
    audio.addEventListener("ended", turn);
    for (const name of ["pause", "timeupdate"]) audio.addEventListener(name, follow);
    audio.addEventListener("error", () => {
      if (audio.getAttribute("src")) find(".unheard").hidden = false;
    });
    show();

    return {
      toggle,
      open: (next) => {
        if (next === path) return;
        path = next;
        find(".unheard").hidden = true;
        cue = null;
        audio.removeAttribute("src");
        audio.load();
        put(0);
      },
      // The part may be another one by now.
      rest: () => playing() || cue !== null || put(part()[0]),
      // The visitor points at a moment, or has chosen another part: it is heard from its beginning.
      seek: (seconds) => {
        put(seconds);
        cue = playing() ? null : seconds;
      },
      renew: () => {
        cue = null;
        put(part()[0]);
      },
    };
  };
})();
