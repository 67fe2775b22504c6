"""A server of the page that answers known things: what docs/serving.md says of requests and replies, and no model."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "serving/page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = "default-src 'self'; object-src 'none'; frame-ancestors 'none'; base-uri 'none'"
NEWS = ("体育", "财经", "科技", "教育", "娱乐", "房产", "国际")
CONTEXT = "Divan 由一个小团队编写。🎉 第一个版本在二〇二六年的冬天发布，它在两个处理器核心上训练模型。"
TAGGED = "🎉 李明去年从上海搬到 Seattle，现在在微软公司上班。"
VECTORS = {"猫在睡觉": (1.0, 0.0), "一只猫睡着了": (0.8, 0.6), "股市下跌": (0.0, 1.0)}
STORY = ["从前", "有", "一座", "图书馆", "，", "每天", "夜里", "都", "亮着", "灯", "。"]
NUMBERS = {
    "max_new_tokens": {"minimum": 1, "maximum": 64, "value": 64},
    "num_beams": {"minimum": 1, "maximum": 8, "value": 5},
    "temperature": {"minimum": 0.1, "maximum": 2, "value": None},
    "top_p": {"minimum": 0.05, "maximum": 1, "value": None},
}
SECRET = "<img src=x onerror=alert(1)>"


def _news(instances: list[Any]) -> list[Any]:
    found = []
    for each in instances:
        best = "体育" if "球" in each["text_a"] else "科技"
        shares = dict.fromkeys(NEWS, 0.02) | {best: 0.88}
        if each["text_a"] == "?":
            shares, best = dict.fromkeys(NEWS, round(1 / 7, 6)), "体育"
        found.append({"prediction": best, "confidence": shares[best], "probabilities": shares})
    return found


def _same(instances: list[Any]) -> list[Any]:
    found = []
    for each in instances:
        same = 0.92 if len(each["text_a"]) < len(each["text_b"]) else 0.75
        found.append({"prediction": "same", "confidence": same, "probabilities": {"different": 1 - same, "same": same}})
    return found


def _topics(instances: list[Any]) -> list[Any]:
    shares = {"service": 0.91, "price": 0.63, "place": 0.31, "noise": 0.04}
    return [{"prediction": ["service", "price"], "probabilities": shares}] * len(instances)


def _entities(instances: list[Any]) -> list[Any]:
    found = []
    for each in instances:
        text, names = (
            each["text_a"],
            (("李明", "name"), ("上海", "address"), ("Seattle", "address"), ("微软公司", "company")),
        )
        places = [(text.find(name), name, kind) for name, kind in names if name in text]
        found.append(
            {
                "entities": [
                    {"type": kind, "text": name, "begin": at, "end": at + len(name), "probability": 0.97}
                    for at, name, kind in places
                ]
            }
        )
    return found


def _answer(instances: list[Any]) -> list[Any]:
    def told(context: str, text: str, probability: float) -> dict[str, Any]:
        begin = context.find(text)
        place = (begin, begin + len(text)) if text else (None, None)
        return {"answer": text, "begin": place[0], "end": place[1], "probability": probability}

    found = []
    for each in instances:
        texts = [("二〇二六年的冬天", 0.81), ("冬天", 0.12), ("", 0.05), ("一个小团队", 0.02)]
        n_best = [told(each["context"], *one) for one in texts]
        best = n_best[2] if "谁的" in each["question"] else n_best[0]
        found.append({**best, "n_best": n_best})
    return found


def _choice(instances: list[Any]) -> list[Any]:
    return [{"prediction": 1, "choice": each["choices"][1], "probabilities": [0.2, 0.8]} for each in instances]


def _pretrained(instances: list[Any]) -> list[Any]:
    found: list[Any] = []
    for each in instances:
        if count := each["text_a"].count("[MASK]"):
            tokens = [("好", 0.62), ("冷", 0.21), ("热", 0.09), ("##美", 0.03), (SECRET, 0.01)]
            found.append({"masks": [[{"token": token, "probability": p} for token, p in tokens]] * count})
        else:
            found.append({"embedding": list(VECTORS.get(each["text_a"], (0.6, -0.8)))})
    return found


def _matching(instances: list[Any]) -> list[Any]:
    if all("text_b" in each for each in instances):
        return [{"cosine": 0.8123, "prediction": "1"}] * len(instances)
    return _pretrained(instances)


def _generation(instances: list[Any]) -> list[Any]:
    text = "".join(STORY)
    hypotheses = [{"text": text, "score": -0.41}, {"text": "图书馆亮着灯。", "score": -0.93}]
    return [{"generated": text, "score": -0.41, "hypotheses": hypotheses}] * len(instances)


def _model(
    kind: str, fields: list[str], examples: list[Any], labels: Any = (), optional: tuple[str, ...] = (), **more: Any
) -> dict[str, Any]:
    described = [{"name": name, "required": name not in optional, "list": name == "choices"} for name in fields]
    named = [dict(zip(fields, [each] if isinstance(each, str) else each, strict=False)) for each in examples]
    shared = {"max_seq_length": 128, "precision": "float32", "format": "run", "version": "3", "state": "ready"}
    given = {"kind": kind, "fields": described, "labels": list(labels), "examples": named}
    return {**given, **shared, "streams": kind == "generation", "embeds": kind in ("matching", "pretrained"), **more}


Row = tuple[dict[str, Any], Callable[[list[Any]], list[Any]]]
MODELS: dict[str, Row] = {
    "news": (
        _model("classification", ["text_a"], ["女篮最后三秒投进关键一球，逆转夺冠", "新芯片让手机续航多出半天"], NEWS),
        _news,
    ),
    "pairs": (
        _model(
            "classification",
            ["text_a", "text_b"],
            [["今天天气怎么样", "今天的天气好不好呀"], ["怎么改密码", "晚上吃什么"]],
            ("different", "same"),
        ),
        _same,
    ),
    "topics": (_model("multilabel", ["text_a"], ["Friendly staff, fair prices."], "abcd", threshold=0.5), _topics),
    "stars": (_model("regression", ["text_a"], ["Not bad at all."]), lambda each: [{"score": 3.75}] * len(each)),
    "names": (_model("tagging", ["text_a"], [TAGGED], ("address", "company", "name")), _entities),
    "questions": (
        _model("span", ["question", "context"], [["什么时候发布的？", CONTEXT]]),
        _answer,
    ),
    "choices": (
        _model(
            "choice",
            ["context", "choices", "question"],
            [["外面下着大雨。", ["太阳镜", "雨伞"], "他出门应该带什么？"]],
            optional=("question",),
        ),
        _choice,
    ),
    "vectors": (
        _model("matching", ["text_a", "text_b"], [["猫在睡觉", "一只猫睡着了"]], "01", optional=("text_b",)),
        _matching,
    ),
    "pretrained": (_model("pretrained", ["text_a"], ["今天天气很[MASK]，适合[MASK]步。"]), _pretrained),
    "stories": (_model("generation", ["text_a"], ["写一个关于图书馆的故事"], parameters=NUMBERS), _generation),
}


class Handler(BaseHTTPRequestHandler):
    """Answers GET of the page and of /info, and POST of predictions."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        server: Any = self.server
        if self.path == "/info":
            if server.key and self.headers["Authorization"] != f"Bearer {server.key}":
                error = {"code": "unauthorized", "message": "send Authorization: Bearer KEY", "field": None}
                return self.reply(401, "application/json", json.dumps({"error": error}).encode())
            models: dict[str, Any] = {name: described for name, (described, _) in MODELS.items()}
            if server.loading:
                server.loading -= 1
                models = {"news": {"state": "loading"}}
            return self.reply(200, "application/json", json.dumps({"models": models, "limits": {"texts": 2}}).encode())
        file = PAGE / (self.path.lstrip("/") or "index.html")
        if file.parent != PAGE or not file.is_file():
            return self.reply(404, "text/plain", b"")
        return self.reply(200, TYPES[file.suffix], file.read_bytes())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = re.fullmatch(r"/v1/models/([a-z]+):predict", self.path)
        assert name, self.path
        _, answer = MODELS[name[1]]
        server: Any = self.server
        server.asked.append(body)
        if wrong := self.wrong(body):
            status, error = wrong
            return self.reply(status, "application/json", json.dumps({"error": error}).encode())
        if body.get("stream"):
            return self.stream()
        times = {"queue": 0.4, "tokenize": 0.3, "compute": 11.6}
        counts = [sum(map(len, map(str, each.values()))) + 2 for each in body["instances"]]
        read = {"tokens": [min(count, 128) for count in counts], "truncated": [count > 128 for count in counts]}
        reply = {"predictions": answer(body["instances"]), "timing_ms": times, **read}
        return self.reply(200, "application/json", json.dumps(reply).encode())

    def wrong(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        texts = json.dumps(body["instances"], ensure_ascii=False)
        if "too long" in texts:
            return 422, {
                "code": "wrong_input",
                "message": "text_a is too long; shorten it",
                "field": "instances[0].text_a",
            }
        if "busy" in texts:
            return 503, {"code": "overloaded", "message": "256 texts wait", "field": None}
        if body["parameters"].get("max_new_tokens") == 31:
            return 422, {"code": "wrong_input", "message": "31 is unlucky", "field": "parameters.max_new_tokens"}
        return None

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        server: Any = self.server
        for number, token in enumerate(STORY):
            if server.slow.is_set():
                server.slow.clear()
                server.goes_on.wait(10)
            self.event({"token": token, "text": "".join(STORY[: number + 1])})
            if server.cut:
                self.close_connection = True
                return
        times = {"queue": 0.1, "tokenize": 0.2, "compute": 42.0}
        self.event({"done": True, "prediction": _generation([None])[0], "timing_ms": times, "tokens": [9]})
        self.close_connection = True

    def event(self, content: dict[str, Any]) -> None:
        # In two parts, the cut within a character: what arrives is no whole lines.
        data = f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()
        for part in (data[:-6], data[-6:]):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(part)
                self.wfile.flush()

    def reply(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        if status == 503:
            self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def page_server() -> Iterator[Any]:
    """Yield a server on the loopback: `address`; `asked`, the bodies that came; `slow` holds the next stream up."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.key, server.loading, server.cut = "", 0, False
    server.asked, server.slow, server.goes_on = [], threading.Event(), threading.Event()
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    with page_server() as running:
        print(running.address, flush=True)
        threading.Event().wait()
