"""One config of the folder `configs`, with what the command line changes in it: a plain dict, or an error in one line.

```
configs/train.yaml + model=tiny train.steps=200   ->   {"model": {...}, "train": {"steps": 200, ...}, ...}
```
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uwm
from uwm.core.config import ConfigError, unknown


def configs_dir() -> Path:
    """The folder of configs: inside the installed package, or beside it in the repository."""
    package = Path(uwm.__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"no configs found in {package / 'configs'} or {package.parent / 'configs'}: install uwm again")


def compose(config: str, overrides: list[str]) -> dict:
    """Compose one config with overrides into a plain dict with all interpolations resolved.

    config: a name in `configs_dir()`, with or without `.yaml`, or the path of a YAML file; its groups are looked up beside
    it and then in `configs_dir()`.
    Raises `ConfigError` in one line for whatever Hydra or OmegaConf refuses.
    """
    folder, name = _locate(config)
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(f"expected KEY=VALUE, got {override!r}; write for example train.steps=200")
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    search = [] if folder == configs_dir() else [f"hydra.searchpath=[file://{configs_dir()}]"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(folder), job_name="uwm"):
        try:
            composed = hydra.compose(name, overrides=[*search, *overrides])
            return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"config {name!r}: {_restated(error, name, search, overrides)}") from error


def _locate(config: str) -> tuple[Path, str]:
    path = Path(config)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path.resolve().parent, path.stem
    name = path.stem if path.suffix in (".yaml", ".yml") else config
    if (configs_dir() / f"{name}.yaml").is_file():
        return configs_dir(), name
    raise ConfigError(unknown(config, [file.stem for file in configs_dir().glob("*.yaml")], "config"))


def _restated(error: Exception, name: str, search: list[str], overrides: list[str]) -> str:
    """Hydra's words, which span lines and speak of structs, as one line with the nearest valid key."""
    import hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    if isinstance(error, MissingMandatoryValue):
        key = getattr(error, "full_key", None) or str(error).rpartition(":")[2].strip()
        return f"{key} has no default: add {key}=..."
    try:
        plain = OmegaConf.to_container(hydra.compose(name, overrides=search), resolve=False)
    except (HydraException, OmegaConfBaseException):
        return _first_sentence(error)  # the file itself is wrong, whatever the overrides are
    parse = OverridesParser.create().parse_override
    for override in overrides:
        try:
            parsed = parse(override)
        except HydraException:
            return f"cannot read the override {override!r}: write KEY=VALUE, and quote values with spaces, commas or braces"
        if not parsed.is_add() and not parsed.is_force_add() and not (configs_dir() / parsed.key_or_group).is_dir():
            wrong = unknown_path(parsed.key_or_group, plain)
            if wrong:
                return wrong
    return _first_sentence(error)


def unknown_path(key: str, config: Mapping) -> str | None:
    """What is wrong with a dotted key, as a sentence with a suggestion, or None when the config has it."""
    here: Any = config
    parts = key.replace("/", ".").split(".")
    for depth, part in enumerate(parts):
        where = f" in {'.'.join(parts[:depth])}" if depth else ""
        if not isinstance(here, Mapping):
            return f"{'.'.join(parts[:depth])} is a single value ({here!r}) and has no key {part!r}"
        if part not in here:
            return unknown(part, here) + where
        here = here[part]
    return None


def _first_sentence(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
