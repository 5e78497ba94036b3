"""Deployments as TOML: sizes, unknown keys, and flags over files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmserve.config import Config, EngineConfig, ServerConfig, load_toml, parse_size, sampling_defaults, validated
from llmserve.errors import ConfigError


def test_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "llmserve.toml"
    file.write_text(
        '[model]\npath = "Qwen/Qwen3-0.6B"\nquant = "q4f16_1"\n[engine]\npage_size = 8\n[server]\nport = 80\n'
    )
    config = load_toml(file)
    assert config.model.path == "Qwen/Qwen3-0.6B"
    assert config.engine == EngineConfig(page_size=8)
    assert (config.server.port, config.server.host) == (80, "127.0.0.1")


@pytest.mark.parametrize(
    ("text", "size"), [(7, 7), ("7", 7), ("2GiB", 2 * 2**30), ("1.5 mb", 1_500_000), ("64k", 64_000), ("64Ki", 65536)]
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[engine]\nmax_num_seq = 3\n", r"engine\.max_num_seq.*did you mean 'max_num_seqs'"),
        ("[servr]\n", r"'servr'; did you mean 'server'"),
        ("[server]\nzzz = 1\n", r"known are host, port"),
        ("[server]\nport = 99999\n", r"server\.port: .*less than or equal"),
        ('[engine]\nkv_cache_memory = "lots"\n', r"engine\.kv_cache_memory.*'lots' is not a size"),
        ("[engine\n", "is not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "llmserve.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_toml(file)
    assert "llmserve.toml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml cannot be read"):
        load_toml(tmp_path / "gone.toml")


def test_several_served_names() -> None:
    for value, names in (("a", ("a",)), (["a", "b"], ("a", "b")), (("a",), ("a",)), (None, None)):
        assert ServerConfig.model_validate({"served_model_name": value}).served_model_name == names
    for wrong in (["a", ""], "", 5, [5]):
        with pytest.raises(ConfigError, match=r"server\.served_model_name"):
            validated(Config, {"server": {"served_model_name": wrong}}, "here")


def test_flags_win_over_the_file_where_given() -> None:
    config = Config.model_validate({"server": {"port": 80, "host": "::"}})
    merged = config.override(server={"port": 81, "host": None}, engine={"page_size": 32})
    assert (merged.server.port, merged.server.host, merged.engine.page_size) == (81, "::", 32)
    with pytest.raises(ConfigError, match="did you mean 'port'"):
        config.override(server={"prot": 1})


def test_a_checkpoints_sampling_defaults(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20, "eos_token_id": 3}')
    assert sampling_defaults(tmp_path) == {"temperature": 0.6, "top_k": 20}


def test_the_server_file_has_every_setting_of_a_server(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "configs" / "server.toml").read_text("utf-8")
    named = re.findall(r"^(?:# )?(\w+) = ", text.partition("\n[server]\n")[2], re.MULTILINE)
    assert sorted(named) == sorted(ServerConfig.model_fields)
    (tmp_path / "all.toml").write_text(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE))
    assert all(value is not None for _, value in load_toml(tmp_path / "all.toml").server)
