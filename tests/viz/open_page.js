// Opens a timeline page with the least of a browser that it needs, uses it, and prints what was drawn as JSON.
const fs = require("fs");
const html = fs.readFileSync(process.argv[2], "utf8");
const data = html.match(/<script id="data" type="application\/json">([\s\S]*?)<\/script>/)[1];
const script = html.slice(html.lastIndexOf("<script>") + 8, html.lastIndexOf("</script>"));

const drawn = {}, handlers = {}, elements = {};
const surface = new Proxy({}, {
  get: (target, name) => name in target ? target[name]
    : name === "measureText" ? () => ({ width: 50 })
    : (...given) => {
        drawn[name] = (drawn[name] || 0) + 1;
        if (given.some(x => typeof x === "number" && !isFinite(x))) throw new Error(`${name}(${given})`);
      },
  set: (target, name, value) => { target[name] = value; return true; },
});
const element = id => elements[id] ??= {
  id, style: {}, clientWidth: 1200, offsetWidth: 100, textContent: id === "data" ? data : "",
  append() {}, setAttribute() {}, setPointerCapture() {}, getContext: () => surface,
  addEventListener: (name, handler) => { handlers[name] = handler; },
};
global.document = { getElementById: element, createElement: () => element(Symbol()), documentElement: {} };
global.window = { devicePixelRatio: 2 };
global.getComputedStyle = () => ({ getPropertyValue: () => "#123" });
global.addEventListener = () => {};
global.innerWidth = 1300;
eval(script);

handlers.wheel({ preventDefault() {}, offsetX: 600, deltaY: -1 });
handlers.pointerdown({ offsetX: 300, pointerId: 1 });
handlers.pointermove({ offsetX: 320, offsetY: 10 });
handlers.pointerup();
handlers.dblclick();
handlers.pointermove({ offsetX: 140, offsetY: 15, clientX: 140, clientY: 15 });
console.log(JSON.stringify({ drawn, title: elements.title.textContent, tip: elements.tip.textContent }));
