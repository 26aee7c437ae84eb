"""Results reach other programs, and programs that are slow, gone or strange never reach the tracker."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_network import TinyBroker, receiver

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.formats.jsonl import frame_record
from corrflow.runtime.live.outputs.mqtt import Broker, MqttSink, parse_mqtt
from corrflow.runtime.live.outputs.rerun import RerunSink, check_rerun
from corrflow.runtime.live.outputs.udp import MAX_DATAGRAM, UdpSink, parse_udp
from corrflow.runtime.live.outputs.worker import SinkWorker
from corrflow.runtime.types import Frame, FrameResult, LiveTiming, ObjectResult


def result(number: int, mask: np.ndarray | None = None) -> FrameResult:
    if mask is None:
        mask = np.zeros((66, 97), np.uint8)
        mask[10:20, number : number + 10] = 3
    points = np.array([[4.0, 5.5]], np.float32)
    objects = (
        ObjectResult(3, "cat", 0.9, True, (number, 10, number + 10, 20)),
        ObjectResult(5, "mouse", 0.8, True, None, points, ("nose",), np.array([0.8], np.float32)),
    )
    frame = Frame(np.full((*mask.shape, 3), 90, np.uint8), 2 * number, number / 7, f"{2 * number:05d}")
    return FrameResult(mask, objects, frame, LiveTiming(number, 1e9 + number, 0.025))


def test_each_frame_is_a_datagram_of_one_line() -> None:
    with receiver() as ours, UdpSink("127.0.0.1", ours.getsockname()[1]) as sink:
        for number in range(3):
            sink.write(result(number))
            data = ours.recv(65536)
            assert data.endswith(b"\n") and json.loads(data) == frame_record(result(number))


def test_masks_too_ragged_for_a_datagram_are_left_out() -> None:
    ragged = (np.indices((300, 300)).sum(0) % 2 * 3).astype(np.uint8)
    assert len(json.dumps(frame_record(result(0, ragged)))) > MAX_DATAGRAM
    with receiver() as ours, UdpSink("127.0.0.1", ours.getsockname()[1]) as sink:
        sink.write(result(0, ragged))
        got = json.loads(ours.recv(65536))
    assert got["masks"] is False and got["objects"][0]["name"] == "cat" and "mask" not in got["objects"][0]


def test_nobody_listening_is_an_error_of_the_output_alone() -> None:
    with receiver() as ours:
        port = ours.getsockname()[1]
    with UdpSink("127.0.0.1", port) as sink, pytest.raises(CorrflowError, match=f"127.0.0.1:{port} cannot be sent to"):
        for _ in range(20):  # the system says so with the next datagram
            sink.write(result(0))
            time.sleep(0.05)


def test_each_frame_is_a_message_to_the_broker() -> None:
    pytest.importorskip("paho.mqtt.client")
    broker = TinyBroker()
    with MqttSink(Broker("127.0.0.1", broker.port, "lab/cage 1", user="me", password="secret")) as sink:
        for number in range(3):
            sink.write(result(number))
            topic, data = broker.messages.get(timeout=10)
            assert topic == "lab/cage 1" and json.loads(data) == frame_record(result(number))
    assert broker.logins.get(timeout=1).endswith(b"\x00\x02me\x00\x06secret")
    broker.close()


def test_a_broker_that_refuses_is_silent_or_gone_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("paho.mqtt.client")
    monkeypatch.setattr("corrflow.runtime.live.outputs.mqtt._MQTT_SECONDS", 0.5)
    for said, reason in ((5, "refuses"), (None, "does not answer")):
        broker = TinyBroker(said)
        with pytest.raises(CorrflowError, match=rf"mqtt://127.0.0.1:{broker.port}/corrflow {reason}"):
            MqttSink(parse_mqtt(f"mqtt://127.0.0.1:{broker.port}"))
        broker.close()
    with pytest.raises(CorrflowError, match="cannot be reached"):
        MqttSink(parse_mqtt(f"127.0.0.1:{broker.port}"))


def test_a_broker_that_stops_reading_costs_frames_that_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("paho.mqtt.client")
    monkeypatch.setattr("corrflow.runtime.live.outputs.mqtt._MQTT_SECONDS", 0.5)
    broker = TinyBroker(reads=False)
    address = Broker("127.0.0.1", broker.port, "corrflow")
    ragged = (np.random.default_rng(0).random((800, 800)) < 0.5).astype(np.uint8) * 3
    output = SinkWorker(address.shown, lambda: MqttSink(address))
    begin = time.monotonic()
    end = begin + 30
    while not output.failures and time.monotonic() < end:
        output.put(result(0, ragged))  # megabytes, which no buffer of the system holds for long
        time.sleep(0.05)
    assert output.failures >= 1 and output.lost >= 1
    assert "takes no messages any more" in output.error
    output.close(5)
    broker.close()


@pytest.mark.parametrize(
    ("text", "broker"),
    [
        ("host", Broker("host", 1883, "corrflow")),
        ("mqtt://host:99/a/b", Broker("host", 99, "a/b")),
        ("mqtts://me:a%40b@host/t", Broker("host", 8883, "t", True, "me", "a@b")),
    ],
)
def test_addresses_of_brokers(text: str, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CORRFLOW_MQTT_PASSWORD", raising=False)
    assert parse_mqtt(text) == broker
    assert broker.password not in broker.shown or not broker.password


@pytest.mark.parametrize(
    "text", ["", "http://host", "mqtt://", "mqtt://me:secret@host:0", "host/a+", "host:x", "host/#"]
)
def test_other_addresses_are_one_sentence_without_the_password(text: str) -> None:
    with pytest.raises(InputError, match="expected") as caught:
        parse_mqtt(text)
    assert "secret" not in str(caught.value)


def test_addresses_of_datagrams() -> None:
    assert parse_udp("127.0.0.1:9000") == ("127.0.0.1", 9000)
    assert parse_udp("udp://[::1]:9000") == ("::1", 9000)
    for wrong in ("", "host", "host:0", "host:99999", "host:port", "a b:9"):
        with pytest.raises(InputError, match="expected --udp HOST:PORT, got"):
            parse_udp(wrong)


def test_a_recording_for_rerun_has_every_frame(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    path = tmp_path / "tracks.rrd"
    check_rerun(str(path))
    with RerunSink(str(path)) as sink:
        for number in range(3):
            sink.write(result(number))
    content = path.read_bytes()
    assert content[:4] == b"RRF2"
    for entity in (b"camera/mask", b"camera/image", b"confidence/cat", b"camera/points/mouse", b"latency_ms"):
        assert entity in content


def test_a_place_that_is_no_recording_for_rerun_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a recording that ends in \.rrd"):
        check_rerun(str(tmp_path / "tracks.mp4"))
