"""MQTT output: one JSON line for each frame, as a message to a broker."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from queue import Empty, Queue
from urllib.parse import unquote, urlsplit

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.jsonl import frame_record, json_line
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.source_uri import redacted

_MQTT_SECONDS = 3.0  # limit for connecting, and for sending one message
_KEEP_ALIVE = 15


@dataclass(frozen=True)
class Broker:
    """MQTT broker and topic."""

    host: str
    port: int
    topic: str
    encrypted: bool = False
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def shown(self) -> str:
        """Address without the password, for messages."""
        return f"mqtt{'s' * self.encrypted}://{self.host}:{self.port}/{self.topic}"


def parse_mqtt(text: str) -> Broker:
    """Parse mqtt://[USER:PASSWORD@]HOST[:PORT][/TOPIC], mqtts:// for TLS, or HOST. The default topic is `corrflow`.

    CORRFLOW_MQTT_PASSWORD in the environment is the default password, which no process list shows. Raises InputError.
    """
    remedy = "write mqtt://HOST:PORT/TOPIC"
    try:
        parts = urlsplit(text if "://" in text else f"mqtt://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    topic = unquote(parts.path.strip("/")) or "corrflow"
    if not host or parts.scheme not in ("mqtt", "mqtts") or set("?#") & set(text) or port == 0:
        shown = redacted(text if "://" in text else f"mqtt://{text}")
        raise InputError(f"expected --mqtt with the address of a broker, got {shown!r}; {remedy}")
    if set("+#\0") & set(topic) or len(topic.encode()) > 1000:
        raise InputError(f"expected an MQTT topic without + and #, got {topic!r}; {remedy}")
    encrypted = parts.scheme == "mqtts"
    password = unquote(parts.password or "") or os.environ.get("CORRFLOW_MQTT_PASSWORD", "")
    return Broker(
        host, port or (8883 if encrypted else 1883), topic, encrypted, unquote(parts.username or ""), password
    )


def check_mqtt() -> None:
    """Raise InputError where the client is not installed."""
    if find_spec("paho") is None:
        raise InputError("expected the package paho-mqtt for --mqtt, got none; pip install 'corrflow[mqtt]'")


class MqttSink(Sink):
    """Publisher of one message for each frame (quality of service 0). A slow or lost broker is an error.

    Each message is sent before the next is queued, so that a slow broker causes no growing queue.
    """

    def __init__(self, broker: Broker) -> None:
        """Connect. Raises CorrflowError where the broker cannot be reached or refuses."""
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self._broker = broker
        self._client = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        self._client.connect_timeout = _MQTT_SECONDS
        if broker.user:
            self._client.username_pw_set(broker.user, broker.password or None)
        if broker.encrypted:
            self._client.tls_set()
        answers: Queue[str] = Queue()
        self._client.on_connect = lambda client, data, flags, reason, properties: answers.put(
            f"refuses ({reason})" if reason.is_failure else ""
        )
        try:
            self._client.connect(broker.host, broker.port, _KEEP_ALIVE)
        except (OSError, ValueError) as error:
            raise CorrflowError(f"{broker.shown} cannot be reached ({error})") from None
        self._client.loop_start()  # its thread also keeps the connection alive between frames
        try:
            answer = answers.get(timeout=_MQTT_SECONDS)
        except Empty:
            answer = "does not answer"
        if answer:
            self.close()
            raise CorrflowError(f"{broker.shown} {answer}")

    def write(self, result: FrameResult) -> None:
        message = self._client.publish(self._broker.topic, json_line(frame_record(result)))
        try:
            message.wait_for_publish(_MQTT_SECONDS)
            sent = message.is_published()
        except (RuntimeError, ValueError):  # not connected
            sent = False
        if not sent:
            raise CorrflowError(f"{self._broker.shown} takes no messages any more")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
