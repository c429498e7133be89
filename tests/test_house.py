"""The house rules: imports point down only, folders that are not packages, and a core that needs nothing but the core."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"uwm": ROOT / "uwm", "uwm_envs": ROOT / "envs" / "uwm_envs", "uwm_data": ROOT / "datasets" / "uwm_data"}

# The floors of design section 2; a room may import from floors below its own, and on its own floor only itself.
FLOORS = {
    "core": 0,
    "noise": 1, "nn": 1,
    "sample": 2,
    "learn": 3, "fast": 3,
    "robot": 4, "media": 4,
    "runs": 5, "finetuning": 5, "dataset": 5, "windows": 5, "data": 5, "training": 5,
    "acting": 5, "brains": 5, "composing": 5, "control": 5, "robot_maker": 5, "serve": 5,
    "bench": 5, "build": 5, "convert": 5, "demo": 5, "examples": 5, "explain": 5, "fetch": 5, "filming": 5, "human": 5, "cli": 5,
    "__main__": 5,
}  # fmt: skip
# These may import each other, and the worlds and episodes by name.
TOP = {"runs", "finetuning", "dataset", "windows", "data", "training", "bench", "build", "acting", "brains", "composing", "control",
       "robot_maker", "convert", "demo", "explain", "fetch", "filming", "human", "serve", "cli", "__main__"}  # fmt: skip
NOT_BELOW = {"fast": {"sample", "noise"}}  # floors allow it, the design does not: fast uses nn only
EXTRAS = ("robosuite", "mujoco", "gymnasium", "cv2", "zarr", "numcodecs", "h5py", "pyarrow", "av", "hydra", "omegaconf", "wandb",
          "tqdm", "websockets", "msgpack", "matplotlib", "PIL", "scipy", "skimage", "jaxtyping", "pylibfranka", "cyclonedds", "rosbags",
          "mcap", "rerun", "lerobot")  # fmt: skip
GRAB_BAGS = {"utils", "util", "common", "helpers", "helper", "misc", "tools", "shared"}


def sources():
    return [file for folder in PACKAGES.values() for file in sorted(folder.rglob("*.py"))]


def module_of(file):
    """`uwm.nn.backbone` for uwm/nn/backbone.py; a package's `__init__` is the package."""
    package, folder = next((name, folder) for name, folder in PACKAGES.items() if file.is_relative_to(folder))
    return ".".join([package, *file.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")


def imported(source, module="uwm.somewhere.file", is_package=False):
    """Every absolute dotted name that the source imports, at the top or inside functions, with `from x import y` as x.y."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if is_package else module.split(".")[:-1]
            base = parts[: len(parts) - node.level + 1] if node.level else []
            names |= {".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names}
    return names


def complaints(module, source, is_package=False):
    """What one file imports against the rules, in words."""
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    found = []
    for name in sorted(imported(source, module, is_package)):
        other, _, below = name.partition(".")
        target = below.partition(".")[0]
        if other in ("envs", "datasets", "configs", "tests"):
            found.append(f"{module} imports {name}: a folder, not a package")
        elif other not in PACKAGES or (other == package != "uwm"):
            continue
        elif package != "uwm":
            found.append(f"{module} imports {name}: {package} stands alone")
        elif other != "uwm":
            if room not in TOP:
                found.append(f"{module} imports {name}: only build, bench and cli may")
        elif target in FLOORS and room in FLOORS and not allowed(room, target):
            found.append(f"{module} (floor {FLOORS[room]}) imports {name} (floor {FLOORS[target]})")
        elif not room and target in FLOORS:
            found.append(f"uwm itself imports {name}: `import uwm` stays light")
    return found


def allowed(room, target):
    if room == target or (room in TOP and target in TOP):
        return True
    return FLOORS[target] < FLOORS[room] and target not in NOT_BELOW.get(room, ())


def test_imports_point_down_only():
    found = [line for file in sources() for line in complaints(module_of(file), file.read_text(), file.name == "__init__.py")]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "is_wrong"),
    [
        ("uwm.core.plans", "import torch", False),
        ("uwm.core.plans", "from uwm.core.levels import checked", False),
        ("uwm.core.plans", "from ..noise import gaussian", True),
        ("uwm.nn.backbone", "from uwm.noise.gaussian import Path", True),
        ("uwm.nn.backbone", "def f():\n    import uwm.noise", True),
        ("uwm.sample.loop", "from uwm import nn, core", False),
        ("uwm.sample.loop", "from uwm import learn", True),
        ("uwm.learn.loop", "from uwm.sample.loop import sample", False),
        ("uwm.learn.loop", "from uwm.fast.cache import cache", True),
        ("uwm.fast.cache", "from uwm.nn.backbone import Backbone", False),
        ("uwm.fast.cache", "from uwm.sample.loop import sample", True),
        ("uwm.fast.cache", "import uwm.learn.loop", True),
        ("uwm.robot.policy", "from uwm.media import edit", True),
        ("uwm.robot.policy", "import uwm_envs", True),
        ("uwm.learn.loop", "from uwm_data import Windows", True),
        ("uwm.build", "import uwm_envs, uwm_data\nfrom uwm.robot import policy", False),
        ("uwm.bench.modes", "from uwm.build import train\nimport uwm_envs", False),
        ("uwm.robot.policy", "from uwm import build", True),
        ("uwm_envs.toy", "from uwm.core import config", True),
        ("uwm_envs.toy", "import uwm_data", True),
        ("uwm_data.store", "from uwm_data.errors import StoreError", False),
        ("uwm_data.store", "from datasets import load_dataset", True),
    ],
)
def test_the_import_rule_itself_can_tell_right_from_wrong(module, source, is_wrong):
    assert bool(complaints(module, source)) == is_wrong


def test_every_room_has_a_floor():
    rooms = {path.stem for path in PACKAGES["uwm"].iterdir() if path.suffix == ".py" or any(path.glob("*.py"))} - {"__init__"}
    assert rooms <= set(FLOORS), f"give {sorted(rooms - set(FLOORS))} a floor in this test and in the design"


@pytest.mark.parametrize("folder", ["envs", "datasets", "configs", "tests"])
def test_a_folder_that_is_not_a_package_has_no_init(folder):
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists(), f"{folder}/__init__.py would shadow or overwrite somebody else's package"


def test_no_grab_bags():
    found = [file.relative_to(ROOT) for file in sources() if GRAB_BAGS & {file.stem, file.parent.name}]
    assert not found, f"name these after what they hold: {found}"


def loaded_by(code, *options):
    """The top-level modules that are loaded after `code` in a fresh process, outside the repository."""
    code += "\nimport sys; print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stdout.split())


def test_importing_uwm_brings_in_none_of_the_extras_and_not_even_torch():
    assert not loaded_by("import uwm") & {*EXTRAS, "torch", "numpy", "einops", "safetensors"}


def test_importing_the_worlds_starts_no_simulator():
    assert not loaded_by("import uwm_envs") & {"robosuite", "mujoco", "cv2", "torch", "uwm", "uwm_data", "matplotlib"}


def test_importing_the_episodes_needs_nothing_of_ours_and_no_torch():
    assert not loaded_by("import uwm_data") & {"torch", "uwm", "uwm_envs", "gymnasium", "robosuite", "mujoco"}


BLOCK = """
import importlib, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
for name in MODULES:
    importlib.import_module(name)
"""


def test_a_control_node_with_the_core_alone_can_import_everything_that_a_policy_needs():
    rooms = ("core", "noise", "nn", "sample", "robot")
    files = [file for room in rooms for file in sorted((PACKAGES["uwm"] / room).rglob("*.py"))]
    # the first two speak to a server's clients and to people, the third is the one file of the DDS robot that needs DDS
    modules = [module_of(file) for file in files if file.stem not in ("server", "client", "dds_messages")]
    loaded_by(f"BLOCKED = {set(EXTRAS)!r}\nMODULES = {modules!r}\n" + BLOCK)


def test_importing_datasets_never_finds_ours(tmp_path):
    """A folder without `__init__` never beats a regular package, wherever the repository stands on the path."""
    theirs = tmp_path / "datasets"
    theirs.mkdir()
    (theirs / "__init__.py").write_text("OWNER = 'somebody else'\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import datasets; print(datasets.OWNER)"
    for folder in (ROOT, tmp_path.parent):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=60, check=False)
        assert done.stdout == "somebody else\n", done.stderr


def test_where_nobody_elses_datasets_is_installed_ours_is_not_a_module_with_a_file():
    code = "try:\n    import datasets\nexcept ImportError:\n    print(None)\nelse:\n    print(datasets.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert not done.stdout.startswith(str(ROOT / "datasets"))
