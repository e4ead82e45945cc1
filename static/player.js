// The players of finished takes: one plays at a time, "Listen here" goes on at the same place in another one, all play
// at equal loudness where that is asked, and timed lyrics follow the song. Gradio runs this text as the body of a function
// for every tab with a result; once is enough, since everything is delegated from the document.
if (window.studioPlayers) return;
window.studioPlayers = true;

const own = new WeakMap(); // player: the volume that the visitor gave it
const watched = new WeakSet();
let heard; // the player that was started last

// The player of a take is an <audio> inside the open shadow root of its waveform.
const playerOf = (take) => {
  for (const each of take.querySelectorAll("div")) {
    const player = each.shadowRoot?.querySelector("audio");
    if (player) return player;
  }
};
const takeOf = (player) => player.getRootNode().host?.closest(".take");
const takesIn = (result) => [...result.querySelectorAll(".take")].filter((take) => take.querySelector(".take-head"));

// --- loudness ---

const loudness = (take) => parseFloat(take.querySelector("[data-lufs]")?.dataset.lufs);

const gainOf = (take) => {
  const result = take.closest(".result");
  if (!result.querySelector(".level input")?.checked) return 1;
  const all = takesIn(result).map(loudness).filter(Number.isFinite);
  const lufs = loudness(take);
  return all.length > 1 && Number.isFinite(lufs) ? 10 ** ((Math.min(...all) - lufs) / 20) : 1;
};

const setVolume = (player) => {
  const take = takeOf(player);
  if (!take) return;
  if (!own.has(player)) own.set(player, player.volume);
  player.volume = own.get(player) * gainOf(take);
};

const volumeChanged = (player) => {
  const take = takeOf(player);
  // What is not ours is the visitor's, by the player's own slider.
  if (!take || Math.abs(player.volume - own.get(player) * gainOf(take)) < 1e-3) return;
  own.set(player, player.volume);
  setVolume(player);
};

// Some phones have one volume, set by their buttons alone: there the switch would do nothing.
const probe = document.createElement("audio");
probe.volume = 0.5;
document.documentElement.classList.toggle("one-volume", probe.volume !== 0.5);

document.addEventListener("change", (event) => {
  const result = event.target.closest?.(".level")?.closest(".result");
  for (const take of result ? takesIn(result) : []) {
    const player = playerOf(take);
    if (player && own.has(player)) setVolume(player);
  }
});

// --- playing ---

const mark = (player) => {
  const button = takeOf(player)?.querySelector(".listen");
  button?.setAttribute("aria-pressed", String(!player.paused && !player.ended));
};

const attend = (player) => {
  if (watched.has(player)) return;
  watched.add(player);
  for (const name of ["play", "pause", "ended"]) player.addEventListener(name, () => mark(player));
  for (const name of ["timeupdate", "seeked"]) player.addEventListener(name, () => follow(player));
  player.addEventListener("volumechange", () => volumeChanged(player));
};

// Events of a player do not leave its shadow root, so this is where the start of any of them can be seen.
const play = HTMLMediaElement.prototype.play;
HTMLMediaElement.prototype.play = function () {
  if (heard && heard !== this) heard.pause();
  heard = this;
  if (takeOf(this)) {
    attend(this);
    setVolume(this);
  }
  return play.call(this);
};

const listen = (take) => {
  const player = playerOf(take);
  if (!player) return;
  if (player === heard && !player.paused) return player.pause();
  const former = heard && heard !== player && takeOf(heard);
  if (former && former.closest(".result") === take.closest(".result")) {
    const end = Number.isFinite(player.duration) ? player.duration : Infinity;
    player.currentTime = Math.min(heard.currentTime, end);
  }
  player.play();
};

// --- timed lyrics ---

const follow = (player) => {
  const list = takeOf(player)?.querySelector(".timed");
  if (!list) return;
  const now = player.currentTime;
  let sung;
  for (const line of list.querySelectorAll("[data-start]")) {
    const inside = Number(line.dataset.start) <= now && now < Number(line.dataset.end);
    if (inside) sung = line;
  }
  const former = list.querySelector("[aria-current]");
  if (former === (sung ?? null)) return;
  former?.removeAttribute("aria-current");
  if (!sung) return;
  sung.setAttribute("aria-current", "true");
  // Not scrollIntoView, which would move the page as well.
  list.scrollTop = sung.offsetTop - (list.clientHeight - sung.offsetHeight) / 2;
};

// --- what a visitor does ---

document.addEventListener("click", (event) => {
  const take = event.target.closest?.(".take");
  if (!take) return;
  if (event.target.closest(".listen")) return listen(take);
  const line = event.target.closest("[data-start]");
  const player = line && playerOf(take);
  if (!player) return;
  player.currentTime = Number(line.dataset.start);
  player.play();
});

document.addEventListener("keydown", (event) => {
  const result = event.target.closest?.(".result");
  if (!result || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
  if (event.target.matches("input:not([type=checkbox]), textarea, select, [contenteditable]")) return;
  const takes = takesIn(result);
  const take = /^[1-9]$/.test(event.key) && takes.length > 1 && takes[Number(event.key) - 1];
  if (!take) return;
  event.preventDefault();
  listen(take);
});
