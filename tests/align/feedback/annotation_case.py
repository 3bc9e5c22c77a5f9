"""Items to judge, a server on loopback that shows them, the page it shows in a browser, and the command itself."""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import subprocess
import sys
import threading
import uuid

from align.feedback.annotation import Annotation, shown_order
from align.feedback.annotation_server import AnnotationServer
from align.feedback.items import FeedbackReply, new_item
from align.runtime.address import listen
from data_formats.records import Message, Prompt
from tests.commands import INSTALLED, ROOT

TOKEN = "a-token-of-the-test"


def item(question, *replies):
    said = [
        FeedbackReply("", text, f"secret-source-{at}", {"temperature": 0.5}, "w") for at, text in enumerate(replies)
    ]
    return new_item(Prompt((Message("user", question),)), said)


def items(count, replies=2):
    return [item(f"question {at}", *(f"reply {at} {one}" for one in range(replies))) for at in range(count)]


def said(of, annotator="anna", **changes):
    """A judgment as the page sends it: the first reply shown is the best."""
    first, *rest = shown_order(of, annotator)
    whole = {"id": str(uuid.uuid4()), "item": of.id, "annotator": annotator, "shown": [first, *rest]}
    return whole | {"ranking": [[first], rest], "strength": "slightly", "seconds": 2.0} | changes


@contextlib.contextmanager
def served(annotation: Annotation, guideline="", port=0):
    """The address with the token."""
    server = AnnotationServer(annotation, TOKEN, guideline)
    listening = listen("127.0.0.1", port)
    thread = threading.Thread(target=server.serve, args=(listening,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/?token={TOKEN}"
    finally:
        server.end()
        thread.join()


class Opened:
    """The page in one window, with what went wrong on it and what it asked for."""

    def __init__(self, browser, url, width=1400, **options):
        self.context = browser.new_context(viewport={"width": width, "height": 900 if width > 500 else 844}, **options)
        self.page, self.wrong, self.asked = self.context.new_page(), [], []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append(dialog.message) or dialog.dismiss())
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.home = url.partition("/?")[0] + "/"
        self.page.goto(url)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def join(self, name):
        self.page.wait_for_selector("#name:focus")
        self.page.keyboard.type(name)
        self.press("Enter")
        self.page.wait_for_selector("#task:not([hidden])")

    def save(self, keys=("Enter",)):
        """Save, and wait for the next item or the end."""
        from playwright.sync_api import expect  # which asks without `eval`, that the page's policy forbids

        progress = self.page.locator("#progress")
        before = progress.inner_text()
        self.press(*keys)
        expect(progress).not_to_have_text(before)

    def verdict(self):
        return self.page.locator("#verdict").inner_text()


class Program:
    """`align annotate` in a process of its own, started again where it was killed."""

    def __init__(self, *words):
        self.words, self.lock = [sys.executable, "-m", "align.cli", "annotate", *map(str, words)], threading.Lock()
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.words, cwd=ROOT, env=INSTALLED, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", line):
                self.url, self.port, self.token = found[0], int(found[1]), found[2]
                return
        raise AssertionError("it did not start")

    def kill(self):
        with self.lock:
            self.process.kill()
            self.process.wait()
            self.start()

    def end(self):
        """By Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0

    def connect(self):
        with self.lock:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            connection.request("GET", f"/?token={self.token}")
            answer = connection.getresponse()
            answer.read()
            return connection, answer.headers["set-cookie"].partition(";")[0]
