"""Settings: flags over environment, unknown names refused, Kubernetes' own names ignored."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from viq.head_tensorrt import MOST_ROWS
from viq_serving.errors import SettingsError
from viq_serving.settings import TENSORRT_PATCHES, Settings, unknown_names


def test_defaults_are_those_of_the_interface() -> None:
    settings = Settings.load()
    assert (settings.weights_root, settings.size, settings.device, settings.dtype) == (None, (), (), "auto")
    assert (settings.host, settings.http_port, settings.drain_delay) == ("127.0.0.1", 8000, 5.0)
    assert settings.limits() == {
        "max_body_bytes": 64 * 2**20,
        "max_images": 64,
        "max_pixels": 50_000_000,
        "max_patches": 16_384,
        "max_message_bytes": 64 * 2**20,
        "max_queue_patches": 262_144,
        "max_queue_age_s": 10.0,
        "stream_max_bytes": 64 * 2**20,
        "stream_max_patches": 16_384,
        "stream_max_items": 1024,
        "stream_max_age_s": 300.0,
        "body_read_timeout_s": 30.0,
        "drain_delay": 5.0,
    }


def test_tensorrt_engines_bound_the_largest_image_and_batch() -> None:
    assert TENSORRT_PATCHES == MOST_ROWS
    Settings.load({"head": "tensorrt", "max_batch_patches": MOST_ROWS})
    for name in ("max_patches", "max_batch_patches"):
        with pytest.raises(SettingsError, match="at most 16384 with head tensorrt, not 20000"):
            Settings.load({"head": "tensorrt", name: 20_000})
        Settings.load({"head": "compile", name: 20_000})


def test_every_setting_has_words_for_the_help_text() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_the_environment_sets_and_flags_override_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIQ_HTTP_PORT", "1234")
    monkeypatch.setenv("VIQ_SIZE", "16k, 64k")
    monkeypatch.setenv("VIQ_WEIGHTS_ROOT", "/weights")
    settings = Settings.load({"weights_root": "hf:some/where", "host": None})
    assert settings.http_port == 1234
    assert settings.size == ("16k", "64k")
    assert settings.weights_root == "hf:some/where"
    assert settings.host == "127.0.0.1"


def test_several_devices_are_named_one_by_one_or_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIQ_DEVICE", "cuda:0, cuda:1")
    assert Settings.load().device == ("cuda:0", "cuda:1")
    assert Settings.load({"device": ("cpu",)}).device == ("cpu",)


def test_an_empty_weights_root_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIQ_WEIGHTS_ROOT", "")
    assert Settings.load().weights_root is None


def test_unknown_names_in_the_environment_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIQ_HTPP_PORT", "1234")
    with pytest.raises(SettingsError, match=r"VIQ_HTPP_PORT.*VIQ_HTTP_PORT"):
        Settings.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VIQ_SERVICE_HOST", "10.0.0.1"),
        ("VIQ_SERVICE_PORT_HTTP", "8000"),
        ("VIQ_GPU_SERVICE_HOST", "10.0.0.1"),
        ("VIQ_PORT", "tcp://10.0.0.1:8000"),
        ("VIQ_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("VIQ_GPU_PORT_53_UDP_PROTO", "udp"),
        ("VIQ_GPU_PORT_53_UDP", "udp://10.0.0.1:53"),
    ],
)
def test_service_links_of_kubernetes_are_ignored(name: str, value: str) -> None:
    assert unknown_names({name: value}) == []


def test_a_service_link_with_the_name_of_a_setting_does_not_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Kubernetes service called viq-http makes this variable in every pod beside it."""
    monkeypatch.setenv("VIQ_HTTP_PORT", "tcp://10.0.0.1:8000")
    assert Settings.load().http_port == 8000


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"http_port": 65536}, "http_port"),
        ({"http_port": "many"}, "VIQ_HTTP_PORT"),
        ({"dtype": "int8"}, "dtype"),
        ({"device": ("cuda:0", "cuda:0")}, "twice: cuda:0, cuda:0; replicas"),
        ({"replicas": 0}, "replicas"),
        ({"bulk_share": 1}, "bulk_share"),
        ({"bulk_share": 0}, "bulk_share"),
        ({"bulk_max_wait_s": 0}, "bulk_max_wait_s"),
        ({"drain_delay": -1}, "drain_delay"),
        ({"max_images": 0}, "max_images"),
        ({"size": ("16k", "16k")}, "twice"),
        ({"drain_delay": "inf"}, "drain_delay"),
        ({"body_read_timeout_s": "inf"}, "body_read_timeout_s"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_impossible_values_fail_and_name_the_setting(flags: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Settings.load(flags)


def test_settings_cannot_be_changed() -> None:
    settings = Settings.load()
    with pytest.raises(ValidationError):
        settings.http_port = 1


def test_masked_settings_are_plain_json() -> None:
    shown = Settings.load({"size": ("16k",)}).masked()
    assert json.loads(json.dumps(shown)) == shown
    assert shown["size"] == ["16k"]


@pytest.mark.parametrize(
    ("environ", "flags", "ports"),
    [
        ({}, {}, (8000, 8001)),
        ({}, {"http_uds": "/run/http"}, (None, 8001)),
        ({"VIQ_GRPC_UDS": "/run/grpc"}, {}, (8000, None)),
        ({"VIQ_HTTP_PORT": "80"}, {"http_uds": "/run/http", "grpc_uds": "/run/grpc"}, (80, None)),
        ({"VIQ_HTTP_PORT": "tcp://10.0.0.1:8000"}, {"http_uds": "/run/http"}, (None, 8001)),
        ({"VIQ_HTTP_UDS": ""}, {}, (8000, 8001)),
    ],
)
def test_a_unix_socket_takes_the_place_of_a_port_that_nobody_asked_for(
    environ: dict[str, str],
    flags: dict[str, object],
    ports: tuple[int | None, int | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load(flags)
    assert (settings.http_port, settings.grpc_port) == ports


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"tls_cert": "cert.pem"}, "tls_cert and tls_key"),
        ({"tls_key": "key.pem"}, "tls_cert and tls_key"),
        ({"tls_client_ca": "roots.pem"}, "tls_client_ca needs"),
        ({"http_uds": "/run/viq", "grpc_uds": "/run/viq"}, "both /run/viq"),
        ({"uds_mode": "0880"}, "uds_mode"),
    ],
)
def test_what_does_not_go_together_fails_and_shows_no_key(
    flags: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIQ_API_KEYS", "secret")
    with pytest.raises(SettingsError, match=words) as caught:
        Settings.load(flags)
    assert "secret" not in str(caught.value)
