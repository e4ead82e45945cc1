// The runs of this browser. A run belongs to the studio; its id is kept here, so that it is found again after a reload, a lost
// connection, sleep, and in a second tab. One question a second tells how all of them go, and none while the page is hidden:
// then the studio tells by itself, for the title. The end of a run is fetched with one event of its bar (page_run.py).
(() => {
  const STORAGE = "ace-music-studio-runs";
  const OWNER = "ace-music-studio-owner";
  const NOTIFY = "ace-music-studio-notify";
  const ASK_MS = 1000;
  const FETCH_AGAIN_MS = 15000; // after the end of a run was asked for in vain
  const PATIENCE_MS = 10000; // for an answer
  const LOST =
    '<div class="shown progress-line" data-state="running" data-heard="lost"><span aria-hidden="true">{}</span></div>';
  const READY = "▶ Ready";

  const bars = new Map(); // by name: {trigger, element, texts}
  const runs = new Map(); // by id: {run, bar, title, settings, facts, born}
  let stream; // {id, source} of the one run that tells by itself while the page is hidden
  let title = ""; // the page's own, which it gets after this script
  let lost = false; // the studio does not answer
  let ready = false; // something was finished that nobody has looked at

  const isOver = (run) => run.facts && !["waiting", "running"].includes(run.facts.state);
  const open = () => [...runs.values()].filter((run) => !isOver(run));
  const of = (bar) => [...runs.values()].filter((run) => run.bar === bar);
  // What a bar shows: the run that is under way, or the next one.
  const current = (bar) => {
    const active = of(bar).filter((run) => !isOver(run));
    return active.find(({ facts }) => facts?.state === "running") ?? active[0];
  };

  // --- what the browser keeps ---

  // A browser that keeps nothing follows its runs until the page is left.
  const { read, write } = studio.local;
  const ID = /^[0-9a-f]{32}$/;
  const kept = () => {
    const found = read(STORAGE);
    return (Array.isArray(found) ? found : []).filter((each) => ID.test(each?.run) && typeof each.bar === "string");
  };
  const others = (id) => kept().filter(({ run }) => run !== id);
  const keep = (ticket) => write(STORAGE, [...others(ticket.run), ticket].slice(-20));
  const forget = (id) => write(STORAGE, others(id));

  // The secret name by which the studio knows that several runs are of one visitor.
  let owner;
  studio.owner = () => {
    owner ??= read(OWNER);
    if (!ID.test(owner)) {
      const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
      owner = bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
      write(OWNER, owner);
    }
    return owner;
  };

  // --- what the page shows ---

  const tell = (bar) =>
    document.dispatchEvent(
      new CustomEvent("studio-runs", { detail: { bar, runs: of(bar).filter((run) => !isOver(run)) } })
    );

  const show = (bar) => {
    const run = current(bar);
    if (lost && run) studio.lines[`${bar}-progress`]?.(LOST.replace("{}", bars.get(bar).texts.lost));
    else if (run?.facts?.line) studio.lines[`${bar}-progress`]?.(run.facts.line);
    tell(bar);
    label();
  };

  const label = () => {
    title ||= document.title;
    const active = open();
    const running = active.find(({ facts }) => facts?.state === "running");
    const { step, steps, stage } = running?.facts.progress ?? {};
    if (ready) document.title = READY;
    else if (running && steps && stage === "steps") document.title = `${step}/${steps} · ${title}`;
    else document.title = active.length ? `… ${title}` : title;
  };

  // The tab of a bar has news until it is looked at.
  const mark = (run) => {
    const panel = bars.get(run.bar)?.element.closest('[role="tabpanel"]');
    if (panel?.offsetParent) return;
    const [mode] = run.bar.split("-");
    for (const tab of document.querySelectorAll(`#studio-tabs [data-tab-id="${mode}"]`)) tab.dataset.news = "";
  };
  document.addEventListener(
    "click",
    ({ target }) => target.closest?.('[role="tab"]')?.removeAttribute("data-news"),
    true
  );

  const looked = () => {
    if (document.hidden) return;
    ready = false;
    label();
  };
  for (const kind of ["focus", "pointerdown", "keydown"]) window.addEventListener(kind, looked, true);

  const notify = (run) => {
    if (studio.notifies() && document.hidden) new Notification(READY, { body: run.title, tag: run.run });
  };
  studio.notifies = () => Boolean(read(NOTIFY)) && window.Notification?.permission === "granted";
  studio.notify = async (wanted) => {
    const allowed = wanted && window.Notification && (await Notification.requestPermission()) === "granted";
    write(NOTIFY, Boolean(allowed));
    return Boolean(allowed);
  };

  // The buttons of a bar: those that cancel first, then those that start a run.
  studio.switches = (bar) => {
    const active = studio.isRunning(bar);
    const { alone, cancels } = bars.get(bar).texts; // how many buttons start one, and how many end it
    const update = (interactive) => ({ __type__: "update", interactive });
    if (!alone) return update(active);
    return [...Array(cancels).fill(update(active)), ...Array(alone).fill(update(!active))];
  };
  studio.isRunning = (bar) => Boolean(current(bar));
  studio.draft = (bar) => {
    const run = current(bar);
    return run?.facts?.draft ?? { __type__: "update" };
  };

  // --- hearing of a run ---

  const hear = (facts) => {
    const run = runs.get(facts.run);
    if (!run || isOver(run)) return;
    const drafted = run.facts?.draft;
    run.facts = { ...run.facts, ...facts };
    const { trigger } = bars.get(run.bar) ?? {};
    if (facts.draft && facts.draft !== drafted) trigger?.("input");
    if (!isOver(run)) return;
    if (facts.state === "finished") {
      run.meanwhile = run.found || document.hidden;
      if (document.hidden || !document.hasFocus()) ready = true;
      mark(run);
      notify(run);
    }
    trigger?.("select");
    if (document.hidden) listen();
  };

  // Have the end of each run shown, one after the other in a bar. An answer takes the run away (`seen`).
  const collect = () => {
    if (document.hidden || lost) return;
    for (const [name, { trigger }] of bars) {
      const run = of(name).find(isOver);
      if (!run || Date.now() - (run.fetched ?? 0) < FETCH_AGAIN_MS) continue;
      run.fetched = Date.now();
      trigger("submit", { run: run.run, meanwhile: Boolean(run.meanwhile) });
    }
  };

  const seen = (id, lost) => {
    const run = runs.get(id);
    if (!run) return;
    forget(id);
    runs.delete(id);
    show(run.bar);
    if (lost && run.settings) offer(run);
    collect();
  };

  // A run that was cut off, or whose result is gone, can be made again from its settings.
  const offer = (run) => {
    const { make } = studio.tools;
    const { trigger, texts } = bars.get(run.bar);
    const again = () => {
      box.remove();
      trigger("retry", { settings: run.settings });
    };
    const button = make("button", { type: "button", text: texts.again, click: again });
    const box = make("p", { class: "cut-off" }, [make("span", { text: run.title }), button]);
    document.getElementById(`${run.bar}-message`)?.after(box);
  };

  // --- asking ---

  const address = (path) => `${studio.tools.root()}/${path}`;
  const query = (ids, more) => address(`runs?${[...ids.map((id) => `id=${id}`), more].join("&")}`);

  let asked = 0;
  let asking = false;
  const ask = async () => {
    const ids = open().map(({ run }) => run);
    if (!ids.length || document.hidden || asking || Date.now() - asked < ASK_MS - 50) return;
    asking = true;
    asked = Date.now();
    try {
      const answer = await fetch(query(ids.slice(0, 20), "line"), {
        cache: "no-store",
        signal: AbortSignal.timeout(PATIENCE_MS),
      });
      if (!answer.ok) throw new Error(answer.status);
      const found = await answer.json();
      lost = false;
      for (const facts of found) hear(facts);
    } catch {
      lost = true;
    }
    asking = false;
    for (const name of bars.keys()) if (of(name).length) show(name);
    collect();
  };
  setInterval(() => {
    ask();
    collect();
  }, ASK_MS);

  // One run at a time: a browser has few connections to a studio, which all its tabs share.
  const listen = () => {
    const active = open();
    const run = active.find(({ facts }) => facts?.state === "running") ?? active[0];
    if (stream && stream.id === run?.run) return;
    hush();
    if (!run) return;
    const also = active.filter((other) => other !== run).map((other) => `&also=${other.run}`);
    const source = new EventSource(address(`runs/${run.run}/events?after=${run.facts?.last ?? 0}${also.join("")}`));
    stream = { id: run.run, source };
    const on = (name, change) =>
      source.addEventListener(name, ({ data }) => {
        hear({ run: run.run, ...change(JSON.parse(data)) });
        label();
      });
    on("progress", (progress) => ({ state: "running", progress }));
    for (const name of ["finished", "failed", "cancelled"]) on(name, () => ({ state: name }));
    source.addEventListener("error", () => source.close()); // else the browser would ask again and again
  };
  const hush = () => {
    stream?.source.close();
    stream = null;
  };

  document.addEventListener("visibilitychange", () => {
    const ids = open().map(({ run }) => run);
    if (!document.hidden) {
      hush();
      looked();
      ask();
      collect();
    } else if (ids.length) {
      fetch(query(ids, "hidden"), { keepalive: true }).catch(() => {});
      listen();
    }
  });

  // --- cancelling ---

  studio.cancel = async (id) => {
    const answer = await fetch(address(`runs/${id}/cancel`), { method: "POST" }).catch(() => null);
    if (!answer?.ok) return;
    const { state } = await answer.json();
    hear({ run: id, state });
    const run = runs.get(id);
    if (run) show(run.bar);
    collect();
  };
  studio.cancelRun = (bar) => {
    const run = current(bar);
    if (run) studio.cancel(run.run);
  };

  // --- the bars ---

  const add = (ticket, found) => {
    if (runs.has(ticket.run)) return;
    runs.set(ticket.run, { ...ticket, found });
    const bar = bars.get(ticket.bar);
    if (bar) setTimeout(() => bar.trigger("select"));
  };

  // A run that another tab of this browser has started.
  window.addEventListener("storage", ({ key }) => {
    if (key !== STORAGE) return;
    for (const ticket of kept()) add(ticket, false);
    ask();
  });

  studio.follow = (element, props, trigger, watch) => {
    const name = element.closest("[id$=-runs]").id.replace(/-runs$/, "");
    bars.set(name, { element, trigger, texts: JSON.parse(element.querySelector("[data-texts]").dataset.texts) });
    watch("value", () => {
      const value = props.value;
      if (value?.seen) return seen(value.seen, value.lost);
      if (!value?.run) return;
      const ticket = { ...value, bar: name };
      keep(ticket);
      add(ticket, false);
      tell(name);
      label();
      ask();
    });
    // Those of a tab that is not open yet are followed, too, and shown when it is opened.
    for (const ticket of kept()) add(ticket, true);
    if (of(name).length) setTimeout(() => trigger("select"));
    ask();
  };
})();
