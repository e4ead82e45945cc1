// Recordings of phones and browsers (M4A, AAC, MP4, WebM), which the server does not read: the browser decodes them, and
// what Gradio uploads is a WAV. One that the browser cannot decode goes up as it is, and the server says what it is.
(() => {
  const RATE = 48000;
  const MOST = 32767;
  const ACCEPT = "audio/*,video/mp4,video/webm,video/quicktime,.m4a,.aac,.mp4,.webm,.mov";
  const NAME = /\.(m4a|m4b|aac|mp4|mov|webm|mkv|3gp)$/i;
  const TYPE = /^(audio|video)\/(mp4|x-m4a|m4a|aac|webm|quicktime|x-matroska|3gpp)\b/;
  const undecodable = new WeakSet();

  const field = (target) => target.closest?.(".file");
  const media = (files) => {
    const [file] = files ?? [];
    return file && !undecodable.has(file) && (NAME.test(file.name) || TYPE.test(file.type)) ? file : null;
  };

  // A WAV file of 16 bits.
  const wav = (buffer) => {
    const channels = Array.from({ length: Math.min(buffer.numberOfChannels, 2) }, (_, at) => buffer.getChannelData(at));
    const size = 2 * channels.length * buffer.length;
    const bytes = new DataView(new ArrayBuffer(44 + size));
    const text = (at, letters) => {
      for (let place = 0; place < letters.length; place += 1) bytes.setUint8(at + place, letters.charCodeAt(place));
    };
    text(0, "RIFF");
    bytes.setUint32(4, 36 + size, true);
    text(8, "WAVEfmt ");
    bytes.setUint32(16, 16, true);
    bytes.setUint16(20, 1, true); // PCM
    bytes.setUint16(22, channels.length, true);
    bytes.setUint32(24, buffer.sampleRate, true);
    bytes.setUint32(28, 2 * channels.length * buffer.sampleRate, true);
    bytes.setUint16(32, 2 * channels.length, true);
    bytes.setUint16(34, 16, true);
    text(36, "data");
    bytes.setUint32(40, size, true);
    const samples = new Int16Array(bytes.buffer, 44);
    channels.forEach((channel, at) => {
      for (let place = 0; place < channel.length; place += 1)
        samples[place * channels.length + at] = Math.round(MOST * Math.min(Math.max(channel[place], -1), 1));
    });
    return bytes.buffer;
  };

  const decoded = async (file) => {
    try {
      const context = new OfflineAudioContext(2, 1, RATE);
      const buffer = await context.decodeAudioData(await file.arrayBuffer());
      return new File([wav(buffer)], file.name.replace(/\.\w+$/, ".wav"), { type: "audio/wav" });
    } catch {
      undecodable.add(file);
      return file;
    }
  };

  const hand = async (root, file) => {
    const line = studio.tools.make("p", { class: "remark decoding", role: "status", text: studio.texts.decoding });
    root.append(line);
    const ready = await decoded(file);
    line.remove();
    const input = root.querySelector("input[type=file]");
    if (!input) return; // the visitor has chosen another file meanwhile
    const files = new DataTransfer();
    files.items.add(ready);
    input.files = files.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };

  for (const kind of ["change", "drop"])
    document.addEventListener(
      kind,
      (event) => {
        const root = field(event.target);
        const file = root && media(kind === "drop" ? event.dataTransfer?.files : event.target.files);
        if (!file) return;
        event.preventDefault();
        event.stopImmediatePropagation();
        hand(root, file);
      },
      true
    );

  // What the system's dialog offers.
  document.addEventListener(
    "click",
    ({ target }) => {
      if (target.matches?.("input[type=file]") && field(target)) target.accept = ACCEPT;
    },
    true
  );
})();
