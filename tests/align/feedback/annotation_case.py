"""Items to judge, and a server on loopback that shows them."""

from __future__ import annotations

import contextlib
import threading
import uuid

from align.feedback.annotation import Annotation, shown_order
from align.feedback.annotation_server import AnnotationServer
from align.feedback.items import FeedbackReply, new_item
from align.runtime.address import listen
from data_formats.records import Message, Prompt

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
