"""Opening robosuite and MuJoCo: quietly, headless where there is no screen, with an error that says what to install."""

import importlib.metadata
import logging
import os
import sys


def choose_gl() -> None:
    """Pick EGL when nothing was chosen and there is no display; must run before mujoco is first imported."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def load_robosuite():
    """Import robosuite without its start-up messages; ImportError names the extra when it is missing."""
    choose_gl()
    # robosuite attaches its own handler at import and warns about optional packages nobody asked for. A level set
    # beforehand would be overwritten during the import, so the whole logger is switched off and on around it.
    logger = logging.getLogger("robosuite_logs")
    logger.disabled = True
    root_level = logging.getLogger().level
    try:
        import robosuite
    except ImportError as error:
        raise ImportError(
            f"this world needs robosuite and MuJoCo, which could not be imported ({error}); install them with: pip install 'uwm[sim]'"
        ) from error
    finally:
        logger.disabled = False
        logging.getLogger().setLevel(root_level)
    logger.setLevel(logging.ERROR)
    return robosuite


def load_mujoco():
    """Import MuJoCo with the chosen GL; ImportError names the extra when it is missing."""
    choose_gl()
    try:
        import mujoco
    except ImportError as error:
        raise ImportError(f"this world needs MuJoCo, which could not be imported ({error}): pip install 'uwm[sim]'") from error
    return mujoco


def versions() -> dict[str, str]:
    """Versions of the packages that decide what an episode looks like."""
    return {name: importlib.metadata.version(name) for name in ("robosuite", "mujoco", "gymnasium", "numpy")}
