"""Things that users name on the command line: ``package.module:name`` or ``path/script.py:name``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from superscaler.errors import SuperscalerError, UsageError, did_you_mean

Result = TypeVar("Result")


def find_object(text: str) -> Any:
    """The object that ``text`` names; modules are also looked for in the working directory.

    Raises :class:`UsageError` saying which part of the name leads nowhere.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not name:
        raise UsageError(f"{text!r} names no object", hint="package.module:name, or path/script.py:name")
    module = _script(Path(place)) if place.endswith(".py") else _module(place)
    if not hasattr(module, name):
        raise UsageError(f"{place} has no {name!r}", hint=did_you_mean(name, _public(module)))
    return getattr(module, name)


def call(what: str, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """``function(...)``, which a user wrote: what it raises is reported with its line, not as a traceback of ours.

    So is leaving the process: a command that ends because something it loads does has no word of its own to say.
    """
    try:
        return function(*args, **kwargs)
    except SuperscalerError:
        raise
    except (Exception, SystemExit) as e:
        raise UsageError(f"{what} failed: {type(e).__name__}: {e}", *_where(e), hint="mend it there") from e


def _script(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no script {path}", hint="path/script.py:function")
    spec = importlib.util.spec_from_file_location(f"superscaler_script_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    _run(str(path), lambda: spec.loader.exec_module(module) if spec.loader else None)
    return module


def _module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if _run(name, lambda: _spec(name)) is None:
        raise UsageError(f"there is no module {name!r}", hint="run this where it can be imported: python -c 'import …'")
    return _run(name, lambda: importlib.import_module(name))


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is; None: nowhere. Looking imports the packages around it, which may fail by themselves."""
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{name}.".startswith(f"{e.name}."):
            raise
    except ValueError:  # a name that no module can have
        pass
    return None


def _run(name: str, load: Callable[[], Result]) -> Result:
    try:
        return load()
    except SyntaxError as e:
        raise UsageError(
            f"{name} is not valid Python: {e.msg}", f"at {e.filename or name}:{e.lineno or 1}", hint="mend it there"
        ) from e
    except SuperscalerError:
        raise
    except (Exception, SystemExit) as e:
        raise UsageError(f"{name} cannot be imported: {type(e).__name__}: {e}", *_where(e), hint="mend it there") from e


def _where(error: BaseException) -> tuple[str, ...]:
    """The line that raised: the last one outside libraries, if there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith("<")]
    own = [f for f in own if Path(f.filename).parent != Path(__file__).parent]
    frame = own[-1] if own else None
    return () if frame is None else (f"at {frame.filename}:{frame.lineno}: {frame.line}",)


def _public(module: ModuleType) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]
