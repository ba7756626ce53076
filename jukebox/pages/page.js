"use strict";
// The page's player. It takes the plain page (songs with native audio elements) and gives it waveforms, levels, lyrics
// that follow, and keys. All text arrives as text: nothing here makes HTML from data.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const PRECISE_SEC = 0.002;
  const BEFORE_SEC = 3; // a comparison begins so long before two takes part

  const find = (root, selector) => root.querySelector(selector);
  const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
  const stamp = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    if (tag === "button") element.type = "button";
    return element;
  }

  function clock(sec) {
    const whole = Math.floor(sec + 1e-3);
    return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
  }

  /** The first word of all labels when they share it and have more to say, else "". */
  function commonWord(labels) {
    const first = labels[0].split(" ")[0];
    return labels.length > 1 && labels.every((label) => label.startsWith(`${first} `)) ? first : "";
  }

  function setPlayButton(button, playing, title) {
    find(button, "use").setAttribute("href", playing ? "#i-pause" : "#i-play");
    button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${title}`);
  }

  // ---------------------------------------------------------------------------------------------- one sound

  class Take {
    constructor(song, audio, facts) {
      this.song = song;
      this.audio = audio;
      this.label = facts.label;
      this.level = facts.level;
      this.sec = Math.max(facts.sec, 0.001); // an empty sound has a length too: no division by zero
      this.packed = facts.peaks;
      this.swapping = false;
      this.loading = null;
      this.ready = false;
      audio.controls = false;
    }

    get peaks() {
      if (!this.unpacked) {
        const bytes = atob(this.packed);
        this.unpacked = Int8Array.from(bytes, (c) => c.charCodeAt(0));
      }
      return this.unpacked;
    }

    /** Resolves when the length is known and any position can be reached. */
    load() {
      const audio = this.audio;
      this.loading ??= new Promise((resolve, reject) => {
        if (audio.readyState >= 1) return resolve();
        audio.addEventListener("loadedmetadata", resolve, { once: true });
        audio.addEventListener("error", () => reject(new Error("it cannot be read")), { once: true });
        audio.preload = "auto";
        if (audio.networkState !== HTMLMediaElement.NETWORK_LOADING) audio.load();
      })
        .then(() => this.makeSeekable())
        .then(() => { this.ready = true; })
        .catch((error) => { this.loading = null; throw error; });
      return this.loading;
    }

    /** A server without ranges lets nobody seek: then the whole file is fetched once and played from memory. */
    async makeSeekable() {
      const { audio } = this;
      if ((audio.seekable.length && audio.seekable.end(0) > 0) || !location.protocol.startsWith("http")) return;
      const answer = await fetch(audio.currentSrc);
      if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
      const blob = await answer.blob();
      this.swapping = true;
      await new Promise((resolve, reject) => {
        audio.addEventListener("loadedmetadata", resolve, { once: true });
        audio.addEventListener("error", () => reject(new Error("it cannot be read")), { once: true });
        audio.src = URL.createObjectURL(blob);
        audio.load();
      }).finally(() => { this.swapping = false; });
    }
  }

  // ---------------------------------------------------------------------------------------------- one song

  class Song {
    constructor(element, facts) {
      this.element = element;
      this.facts = facts;
      this.title = facts.title;
      const audios = element.querySelectorAll("audio");
      this.takes = facts.takes.map((take, k) => new Take(this, audios[k], take));
      this.take = this.takes[this.takes.length - 1]; // the finest level
      this.wanted = false; // shall it play?
      this.target = null; // a position asked for that the sound has not reached yet, in seconds
      this.loop = [];
      this.built = false;
      this.kept = facts.kept; // so many seconds of it are its parent's
      this.origin = facts.origin; // where it begins on the clock of all that grew from one song, in seconds
    }

    /** The song of this page that this one grew from. */
    get elder() {
      return songs.find(({ facts }) => facts === data.songs[this.facts.elder]);
    }

    /** Puts the player into the page; done when the song comes near the screen, or is asked for. */
    build() {
      if (this.built || !this.takes.length) return;
      this.built = true;
      const player = stamp("player");
      this.playButton = find(player, ".play");
      this.wave = find(player, ".wave");
      this.clock = find(player, ".clock");
      this.loopButton = find(player, ".loop");
      this.trouble = find(player, ".trouble");
      this.pinButtons = [...player.querySelectorAll(".pin")];
      const levels = find(player, ".levels");
      const prefix = commonWord(this.takes.map(({ label }) => label)); // "Level 2", "Level 1": the word stands once
      if (prefix) levels.append(make("span", "", prefix));
      this.levelButtons = this.takes.map((take, k) => {
        const button = make("button", "", take.label.slice(prefix.length).trim());
        button.setAttribute("aria-label", take.label);
        button.addEventListener("click", () => this.choose(k));
        levels.append(button);
        return button;
      });
      this.playButton.addEventListener("click", () => this.toggle());
      this.loopButton.addEventListener("click", () => this.markLoop());
      for (const button of this.pinButtons) button.addEventListener("click", () => compare.pin(button.dataset.pin, this));
      for (const take of this.takes) this.watch(take);
      this.buildWave();
      this.rows = [...this.element.querySelectorAll(".takes > li")];
      this.loudest = Math.max(6, ...this.takes.flatMap((take) => Array.from(take.peaks, Math.abs)));
      this.figures = [...this.element.querySelectorAll("figure")].map((figure) => this.buildFigure(figure));
      find(this.element, ".listen").prepend(player);
      if (data.keep && this.facts.codes) {
        const buttons = stamp("curate");
        this.keepButton = find(buttons, ".keep");
        this.keepButton.addEventListener("click", () => curate.keep(this));
        find(buttons, ".branch").addEventListener("click", () => curate.branch(this));
        find(this.element, ".files").prepend(buttons);
      }
      if (this.elder) {
        const beside = make("button", "beside", "Compare");
        beside.setAttribute("aria-label", `Compare ${this.title} with ${this.elder.title}, from where they part`);
        beside.addEventListener("click", () => compare.withElder(this));
        find(this.element, ".grown").append(beside);
      }
      this.lyrics = this.facts.words.length ? new Lyrics(this) : null;
      this.refresh();
    }

    watch(take) {
      const { audio } = take;
      const mine = () => take === this.take && !take.swapping;
      audio.addEventListener("timeupdate", () => mine() && this.tick());
      audio.addEventListener("ended", () => mine() && this.rest());
      audio.addEventListener("pause", () => mine() && this.wanted && !audio.ended && this.target === null && this.rest());
      audio.addEventListener("error", () => mine() && this.complain(new Error("it cannot be read")));
    }

    get position() {
      return clamp(this.target ?? this.take.audio.currentTime, 0, this.take.sec);
    }

    toggle() {
      if (this.wanted) this.pause();
      else this.play();
    }

    play() {
      const { take } = this;
      this.build();
      bar.take(this);
      this.wanted = true;
      this.trouble.textContent = "";
      if (this.target === null && this.position >= take.sec - 0.05) this.target = this.loop[0] ?? 0;
      if (!take.ready) take.load().then(() => this.arrive(take), (error) => this.complain(error));
      if (take.ready || this.target === null) this.arrive(take); // at once where possible: within the click, as Safari asks
      for (const other of this.takes) if (other !== take) other.load().catch(() => {});
      this.refresh();
      frames.start();
    }

    /** Goes where it was asked to be and plays if it shall. */
    arrive(take) {
      if (take !== this.take) return;
      const { audio } = take;
      if (this.target !== null && take.ready) {
        if (Math.abs(audio.currentTime - this.target) > PRECISE_SEC) audio.currentTime = this.target;
        this.target = null;
      }
      audio.playbackRate = bar.rate;
      if (this.wanted && audio.paused) {
        audio.play().catch((error) => { if (error.name !== "AbortError" && this.wanted) this.complain(error); });
      }
      this.tick();
    }

    pause() {
      this.wanted = false;
      this.take.audio.pause();
      this.refresh();
    }

    /** It has stopped by itself, or by a key of the machine. */
    rest() {
      this.wanted = false;
      this.refresh();
    }

    seek(sec) {
      const { take } = this;
      this.target = clamp(sec, 0, take.sec);
      if (take.ready) this.arrive(take);
      else take.load().then(() => this.arrive(take), (error) => this.complain(error));
      this.tick();
    }

    /** Another level at the same position. */
    choose(k) {
      const before = this.take;
      const position = this.position;
      if (!this.takes[k] || this.takes[k] === before) return;
      this.take = this.takes[k];
      before.audio.pause();
      this.target = Math.min(position, this.take.sec);
      if (this.wanted) this.play();
      else this.seek(this.target);
      this.refresh();
    }

    /** First press: from here. Second: to here, and round. Third: off. */
    markLoop() {
      const { position } = this;
      if (this.loop.length === 2) this.loop = [];
      else if (this.loop.length === 1 && Math.abs(position - this.loop[0]) > 0.05) {
        this.loop = [this.loop[0], position].sort((a, b) => a - b);
        this.seek(this.loop[0]);
      } else this.loop = [position];
      this.refresh();
    }

    complain(error) {
      this.wanted = false;
      this.build();
      this.trouble.textContent = `This sound does not play: ${error.message}.`;
      this.refresh();
    }

    // -- what is seen

    refresh() {
      if (!this.built) return;
      setPlayButton(this.playButton, this.wanted, this.title);
      this.levelButtons.forEach((button, k) => button.setAttribute("aria-pressed", String(this.takes[k] === this.take)));
      for (const button of this.pinButtons) {
        const pinned = compare.holds(button.dataset.pin, this);
        button.setAttribute("aria-pressed", String(pinned));
        button.setAttribute("aria-label", pinned ? `Forget ${button.dataset.pin}` : `Keep as ${button.dataset.pin} to compare`);
      }
      this.keepButton?.setAttribute("aria-pressed", String(curate.kept.has(this.facts.codes)));
      const [from, to] = this.loop;
      this.loopButton.textContent =
        to !== undefined ? `Loop ${clock(from)}–${clock(to)}` : from !== undefined ? `Loop ${clock(from)}–…` : "Loop";
      this.loopButton.setAttribute("aria-pressed", String(to !== undefined));
      for (const { figure, of } of this.figures) figure.hidden = of !== null && of !== this.take;
      this.rows.forEach((row, k) => { row.hidden = this.takes[k] !== this.take; });
      this.wave.setAttribute("aria-label", `Position in ${this.title}, ${this.take.label}`);
      this.wave.setAttribute("aria-valuemax", this.take.sec.toFixed(1));
      this.element.classList.toggle("playing", this.wanted);
      this.shown = null;
      bar.refresh();
      this.tick();
    }

    tick() {
      if (!this.built) return;
      const { position, loop } = this;
      if (loop.length === 2 && this.wanted && this.target === null && position >= loop[1]) return this.seek(loop[0]);
      const text = `${clock(position)} / ${clock(this.take.sec)}`;
      if (text !== this.shown) {
        this.shown = text;
        this.clock.textContent = text;
        this.wave.setAttribute("aria-valuenow", position.toFixed(1));
        this.wave.setAttribute("aria-valuetext", `${clock(position)} of ${clock(this.take.sec)}`);
        bar.showTime(this, text);
      }
      for (const { head } of this.figures) head.style.left = `${(100 * position) / this.take.sec}%`;
      this.lyrics?.follow(position);
      this.draw();
    }

    buildWave() {
      const { wave } = this;
      const seekTo = (event) => {
        const box = wave.getBoundingClientRect();
        this.seek(((event.clientX - box.left) / box.width) * this.take.sec);
      };
      wave.addEventListener("pointerdown", (event) => {
        if (event.button) return;
        wave.setPointerCapture(event.pointerId);
        seekTo(event);
      });
      wave.addEventListener("pointermove", (event) => wave.hasPointerCapture(event.pointerId) && seekTo(event));
      wave.addEventListener("keydown", (event) => {
        const end = this.take.sec;
        const here = this.position;
        const places = {
          ArrowLeft: here - 5, ArrowDown: here - 5, ArrowRight: here + 5, ArrowUp: here + 5,
          PageDown: here - 15, PageUp: here + 15, Home: 0, End: end,
        };
        if (!(event.key in places) || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        this.seek(places[event.key]);
      });
      new ResizeObserver(() => this.draw()).observe(wave);
    }

    draw() {
      const { wave, take } = this;
      const width = wave.clientWidth;
      const height = wave.clientHeight;
      if (!width) return;
      const scale = devicePixelRatio || 1;
      if (wave.width !== Math.round(width * scale) || wave.height !== Math.round(height * scale)) {
        wave.width = Math.round(width * scale);
        wave.height = Math.round(height * scale);
      }
      const pen = wave.getContext("2d");
      pen.setTransform(scale, 0, 0, scale, 0, 0);
      pen.clearRect(0, 0, width, height);
      const now = (this.position / take.sec) * width;
      if (this.loop.length) {
        const [from, to = this.position] = this.loop;
        pen.fillStyle = colours.loop;
        pen.fillRect((from / take.sec) * width, 0, ((to - from) / take.sec) * width, height);
      }
      const bars = Math.max(1, Math.floor(width / 3));
      const pairs = take.peaks.length / 2;
      const middle = height / 2;
      for (let k = 0; k < bars; k++) {
        let low = 0;
        let high = 0;
        const stop = Math.max(Math.floor((k * pairs) / bars) + 1, Math.floor(((k + 1) * pairs) / bars));
        for (let p = Math.floor((k * pairs) / bars); p < stop && p < pairs; p++) {
          low = Math.min(low, take.peaks[2 * p]);
          high = Math.max(high, take.peaks[2 * p + 1]);
        }
        const top = middle - (high / this.loudest) * (middle - 1);
        const size = Math.max(2, ((high - low) / this.loudest) * (middle - 1));
        const x = (k * width) / bars;
        pen.fillStyle = x + 1 <= now ? colours.played : colours.wave;
        pen.beginPath();
        pen.roundRect(x, Math.min(top, middle - 1), 2, size, 1);
        pen.fill();
      }
      pen.fillStyle = colours.ink;
      if (this.kept && this.kept < take.sec) { // from here on it goes its own way
        for (let y = 0; y < height; y += 6) pen.fillRect((this.kept / take.sec) * width, y, 1, 3);
      }
      pen.fillRect(clamp(now - 0.75, 0, width - 1.5), 0, 1.5, height);
    }

    buildFigure(figure) {
      const picture = find(figure, ".picture");
      const head = make("div", "playhead");
      picture.append(head);
      picture.addEventListener("click", (event) => {
        const box = picture.getBoundingClientRect();
        this.seek(((event.clientX - box.left) / box.width) * this.take.sec);
      });
      const number = figure.dataset.take;
      return { figure, head, of: number === "" ? null : this.takes[Number(number)] };
    }
  }

  // ---------------------------------------------------------------------------------------------- lyrics

  class Lyrics {
    constructor(song) {
      this.song = song;
      this.box = find(song.element, ".lyrics");
      this.text = find(this.box, ".text");
      this.words = [];
      this.line = null;
      this.word = null;
      const byLine = new Map();
      for (const [text, start, end, sure, line] of song.facts.words) {
        if (!byLine.has(line)) byLine.set(line, []);
        byLine.get(line).push({ text, start, end, sure });
      }
      [...this.text.querySelectorAll(".line")].forEach((plain, number) => {
        const words = byLine.get(number);
        if (words) plain.replaceWith(this.buildLine(plain.textContent, words));
      });
      this.words.sort((a, b) => a.start - b.start);
      this.box.classList.add("follows");
      this.followButton = make("button", "follow", "Follow the song");
      this.followButton.hidden = true;
      this.followButton.addEventListener("click", () => this.setFollowing(true));
      this.box.append(this.followButton);
      this.following = !calm.matches;
      for (const kind of ["wheel", "touchmove"]) {
        this.text.addEventListener(kind, () => this.setFollowing(false), { passive: true });
      }
      this.text.addEventListener("keydown", (event) => {
        if (/^(Arrow|Page|Home|End|Tab)/.test(event.key)) this.setFollowing(false);
      });
      this.text.addEventListener("pointerdown", (event) => event.target === this.text && this.setFollowing(false));
    }

    buildLine(text, words) {
      const button = make("button", "line");
      let cursor = 0;
      for (const word of words) {
        const at = text.indexOf(word.text, cursor);
        if (at > cursor) button.append(text.slice(cursor, at));
        if (at < 0 && cursor) button.append(" ");
        if (at >= 0) cursor = at + word.text.length;
        word.span = make("span", word.sure < data.sure ? "word faint" : "word", word.text);
        if (word.sure < data.sure) word.span.title = `time uncertain: ${Math.round(100 * word.sure)} % sure`;
        word.line = button;
        button.append(word.span);
        this.words.push(word);
      }
      if (cursor && cursor < text.length) button.append(text.slice(cursor));
      button.addEventListener("click", (event) => {
        const word = words.find(({ span }) => span === event.target) ?? words[0];
        this.song.seek(word.start);
        if (!calm.matches) this.setFollowing(true);
      });
      return button;
    }

    setFollowing(on) {
      this.following = on;
      this.followButton.hidden = on || calm.matches;
      if (on) this.show();
    }

    follow(position) {
      let low = 0;
      let high = this.words.length; // the first word that starts later
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.words[middle].start <= position + PRECISE_SEC) low = middle + 1;
        else high = middle;
      }
      const latest = this.words[low - 1] ?? null;
      const word = latest && position < Math.max(latest.end, latest.start + 0.05) ? latest : null;
      const line = latest?.line ?? null;
      if (word !== this.word) {
        this.word?.span.classList.remove("now");
        word?.span.classList.add("now");
        this.word = word;
      }
      if (line !== this.line) {
        this.line?.removeAttribute("aria-current");
        line?.setAttribute("aria-current", "true");
        this.line = line;
        if (this.following && !calm.matches) this.show();
      }
    }

    show() {
      if (!this.line) return;
      const top = this.line.offsetTop - (this.text.clientHeight - this.line.offsetHeight) / 2;
      this.text.scrollTo({ top, behavior: this.song.wanted ? "smooth" : "auto" });
    }
  }

  // ---------------------------------------------------------------------------------------------- all songs

  const colours = {};
  function readColours() {
    const style = getComputedStyle(document.documentElement);
    for (const [name, from] of [["wave", "--wave"], ["played", "--accent"], ["loop", "--loop"], ["ink", "--ink"]]) {
      colours[name] = style.getPropertyValue(from).trim();
    }
  }

  /** Draws the sounding song once per picture of the screen; nothing runs in silence. */
  const frames = {
    running: false,
    start() {
      if (this.running) return;
      this.running = true;
      const step = () => {
        const song = bar.song;
        if (!song?.wanted) { this.running = false; return; }
        song.tick();
        requestAnimationFrame(step);
      };
      requestAnimationFrame(step);
    },
  };

  /** The strip at the foot: what plays now, speed, A and B. There is one song at a time, and it is this one. */
  const bar = {
    song: null,
    rate: 1,

    take(song) {
      if (this.song && this.song !== song) this.song.pause();
      const fresh = this.song !== song;
      this.song = song;
      if (!this.element) this.build();
      if (fresh) this.announce();
      this.refresh();
    },

    build() {
      const element = stamp("bar");
      this.element = element;
      this.playButton = find(element, ".play");
      this.title = find(element, ".bar-song");
      this.takeName = find(element, ".bar-take");
      this.link = find(element, ".bar-title");
      this.clock = find(element, ".bar-clock");
      this.swapButton = find(element, ".swap");
      this.playButton.addEventListener("click", () => this.song.toggle());
      find(element, "[data-go=back]").addEventListener("click", () => go(-1));
      find(element, "[data-go=on]").addEventListener("click", () => go(1));
      this.swapButton.addEventListener("click", () => compare.swap());
      find(element, "select").addEventListener("change", (event) => {
        this.rate = Number(event.target.value);
        this.song.take.audio.playbackRate = this.rate;
      });
      document.body.append(element);
    },

    refresh() {
      const { song } = this;
      if (!song) return;
      const kept = find(this.element, ".bar-kept");
      kept.hidden = !curate.kept.size;
      kept.textContent = `${curate.kept.size} kept`;
      setPlayButton(this.playButton, song.wanted, song.title);
      this.title.textContent = song.title;
      this.link.setAttribute("href", `#${song.element.id}`);
      const letter = compare.letter(song);
      this.takeName.textContent = letter ? `${letter}: ${song.take.label}` : song.take.label;
      this.swapButton.disabled = !compare.complete;
      if ("mediaSession" in navigator) navigator.mediaSession.playbackState = song.wanted ? "playing" : "paused";
    },

    showTime(song, text) {
      if (song !== this.song) return;
      this.clock.textContent = text;
      if (!("mediaSession" in navigator) || !navigator.mediaSession.setPositionState) return;
      navigator.mediaSession.setPositionState({ duration: song.take.sec, position: song.position, playbackRate: this.rate });
    },

    /** Tells the lock screen and the keyboard's media keys. */
    announce() {
      if (!("mediaSession" in navigator)) return;
      const { title, artist } = this.song.facts;
      navigator.mediaSession.metadata = new MediaMetadata({ title, artist, album: data.title });
      const act = {
        play: () => this.song.play(),
        pause: () => this.song.pause(),
        previoustrack: () => go(-1),
        nexttrack: () => go(1),
        seekbackward: (how) => this.song.seek(this.song.position - (how.seekOffset ?? 5)),
        seekforward: (how) => this.song.seek(this.song.position + (how.seekOffset ?? 5)),
        seekto: (how) => this.song.seek(how.seekTime),
      };
      for (const [name, action] of Object.entries(act)) {
        try { navigator.mediaSession.setActionHandler(name, action); } catch { /* this browser knows fewer actions */ }
      }
    },
  };

  /** Two kept takes, A and B, and the leap between them at the same position. */
  const compare = {
    kept: { A: null, B: null },

    get complete() { return Boolean(this.kept.A && this.kept.B); },

    holds(letter, song) { return this.kept[letter]?.song === song && this.kept[letter] === song.take; },

    letter(song) { return ["A", "B"].find((letter) => this.holds(letter, song)); },

    pin(letter, song) {
      const before = this.kept[letter];
      this.kept[letter] = this.holds(letter, song) ? null : song.take;
      if (!bar.song) bar.take(song);
      before?.song.refresh();
      song.refresh();
    },

    swap() {
      if (!this.complete) return;
      const from = bar.song;
      const take = this.kept[this.holds("A", from) ? "B" : "A"];
      const { position, wanted } = from;
      if (take.song !== from) from.pause();
      take.song.choose(take.song.takes.indexOf(take));
      bar.take(take.song);
      take.song.seek(position + from.origin - take.song.origin); // the same moment, though one may begin in the other
      if (wanted && !take.song.wanted) take.song.play();
      take.song.refresh();
    },

    /** A song and the one it grew from, at the moment before they part. */
    withElder(song) {
      const { elder } = song;
      elder.build();
      elder.choose(elder.takes.findIndex(({ level }) => level === song.take.level));
      for (const [letter, one] of [["A", elder], ["B", song]]) if (!this.holds(letter, one)) this.pin(letter, one);
      bar.take(song);
      song.seek(Math.max(song.kept - BEFORE_SEC, 0));
      song.play();
    },
  };

  /** Takes worth keeping, and moments worth going on from: the page writes the commands. */
  const curate = {
    kept: new Set(),
    place: `jukebox kept ${location.pathname}`,

    keep(song) {
      const { codes } = song.facts;
      if (!this.kept.delete(codes)) this.kept.add(codes);
      try { localStorage.setItem(this.place, JSON.stringify([...this.kept])); } catch { /* remembered while it is open */ }
      song.refresh();
      this.show();
    },

    /** What was kept when this page was last open. */
    recall() {
      try {
        const known = new Set(data.songs.map(({ codes }) => codes));
        this.kept = new Set(JSON.parse(localStorage.getItem(this.place) ?? "[]").filter((codes) => known.has(codes)));
      } catch { /* nothing is remembered here */ }
      this.show();
    },

    show() {
      const box = find(document, ".kept-takes");
      box.hidden = !this.kept.size;
      const codes = data.songs.map((facts) => facts.codes).filter((one) => this.kept.has(one));
      find(box, ".count").textContent = codes.length === 1 ? "One take kept" : `${codes.length} takes kept`;
      layOut(find(box, "code"), data.keep.replace("{codes}", () => codes.map(quoted).join(" ")));
    },

    branch(song) {
      const position = song.position >= 0.01 ? song.position : song.take.sec; // at the beginning: all of it is kept
      song.branchBox ??= this.build(song);
      find(song.branchBox, "b").textContent = clock(position);
      const text = data.continue.replace("{codes}", () => quoted(song.facts.codes));
      layOut(find(song.branchBox, "code"), text.replace("{seconds}", position.toFixed(2)));
    },

    build(song) {
      const box = make("div", "branch-box");
      const line = make("p", "note", "The beginning up to ");
      line.append(make("b"), ", sung on another way:");
      const command = make("pre", "command");
      command.tabIndex = 0;
      command.append(make("code"));
      box.append(line, command);
      find(song.element, ".listen").append(box);
      addCopyButton(command);
      return box;
    },
  };

  /** A command whose lines break between its words only. */
  function layOut(code, text) {
    code.replaceChildren(...text.split(" ").flatMap((word, k) => [k ? " " : "", make("span", "", word)]));
  }

  /** A word of a command line. */
  function quoted(word) {
    return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`;
  }

  /** The next or previous song that sounds; it goes on playing if music was on. */
  function go(step) {
    const from = bar.song ?? songs[step > 0 ? songs.length - 1 : 0];
    const to = songs[(songs.indexOf(from) + step + songs.length) % songs.length];
    const { wanted } = from;
    to.build();
    bar.take(to);
    if (wanted) to.play();
    else to.refresh();
    to.element.scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
    to.wave.focus({ preventScroll: true });
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.target.closest("input, select, textarea")) return;
    const inside = event.target.closest("article.song");
    const song = songs.find(({ element }) => element === inside) ?? bar.song ?? songs[0];
    if (!song) return;
    const key = event.key.toLowerCase();
    if (key === " ") {
      if (event.target.closest("button, summary, a")) return; // they answer Space themselves
      song.toggle();
    } else if (key === "j") go(1);
    else if (key === "k") go(-1);
    else if (key === "l") song.markLoop();
    else if (key === "x") compare.swap();
    else if (/^[0-9]$/.test(key)) song.choose(song.takes.findIndex(({ level }) => level === Number(key)));
    else return;
    event.preventDefault();
  }

  function addCopyButton(box) {
    const button = make("button", "copy", "Copy the command");
    button.addEventListener("click", async () => {
      const text = box.textContent;
      try {
        await navigator.clipboard.writeText(text);
      } catch {
        getSelection().selectAllChildren(box);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy the command"; }, 1500);
    });
    box.after(button);
  }

  readColours();
  const songs = [...document.querySelectorAll("article.song")]
    .map((element, k) => new Song(element, data.songs[k]))
    .filter((song) => song.takes.length);
  document.documentElement.classList.add("live");
  curate.recall();

  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      songs.find(({ element }) => element === entry.target).build();
    }
  }, { rootMargin: "1000px" });
  for (const song of songs) near.observe(song.element);

  document.addEventListener("keydown", onKey);
  for (const box of document.querySelectorAll(".command")) addCopyButton(box);
  for (const code of document.querySelectorAll(".command code")) layOut(code, code.textContent);
  for (const query of ["(prefers-color-scheme: dark)", "(resolution: 1dppx)"]) {
    matchMedia(query).addEventListener("change", () => {
      readColours();
      for (const song of songs) if (song.built) song.draw();
    });
  }
  for (const link of document.querySelectorAll(".own-sound")) { // a single file holds each sound once: the player's is saved
    link.href = find(link.closest("li"), "audio").src;
  }
  if (location.protocol === "file:") { // there a browser opens the link in place of saving: not in place of the page
    for (const link of document.querySelectorAll("a[download]:not([href^='data:'])")) link.target = "_blank";
  }
  let opened = [];
  addEventListener("beforeprint", () => {
    for (const song of songs) song.build();
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => { for (const details of opened) details.open = false; });
})();
