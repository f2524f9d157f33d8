"""A small OpenFX host: loads a plugin into this process, keeps its properties and parameters, and hands it pictures."""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_double, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from tests.bridge.ofx_things import DEPTHS, Array, Image, Layout, Thing

OK, FAILED, UNKNOWN, BAD_HANDLE, BAD_INDEX, REPLY_NO, REPLY_DEFAULT = 0, 1, 3, 9, 10, 13, 14


class _Plugin(ctypes.Structure):
    _fields_ = (
        ("api", c_char_p),
        ("api_version", c_int),
        ("identifier", c_char_p),
        ("major", c_uint),
        ("minor", c_uint),
        ("set_host", CFUNCTYPE(None, c_void_p)),
        ("main", CFUNCTYPE(c_int, c_char_p, c_void_p, c_void_p, c_void_p)),
    )


class _Host(ctypes.Structure):
    _fields_ = (("properties", c_void_p), ("fetch_suite", CFUNCTYPE(c_void_p, c_void_p, c_char_p, c_int)))


class OfxHost:
    """Loads a plugin, and is its host until `unload`."""

    def __init__(
        self,
        library: Path,
        *,
        suites: frozenset[tuple[str, int]] | None = None,
        temporal: bool = False,
        hidden: frozenset[str] = frozenset(),
        hollow: bool = False,
    ) -> None:
        """suites: the optional ones that are offered, None for all; temporal: frames of other times can be had.

        hidden: properties that nobody gets; hollow: the optional suites have no functions.
        """
        self._handles = itertools.count(0x1000, 16)
        self._things: dict[int, Thing] = {}
        self._local = threading.local()
        self._open_images: Counter[int] = Counter()
        self._kept: list[Any] = []
        self._instances: list[Thing] = []
        self.messages: list[str] = []
        """What is shown beside the picture, or was logged; the last is empty where it was taken away."""
        self.violations: list[str] = []
        """What a strict host would not take."""
        self.progress: Callable[[float], bool] = lambda _share: True
        """Shows a share; False where the user cancels."""
        self.optional = suites
        self.last_s = 0.0
        """Time that the plugin took for the last action, in seconds."""
        self.render_s = 0.0
        """The same of the last picture."""
        self.fetched: list[float] = []
        """Times of the source frames that were asked for besides the one shown."""
        self._hidden = hidden
        self._suites = self._make_suites()
        if hollow:
            self._suites |= {key: (c_void_p * 3)() for key in self._suites if key[0] not in _NEEDED}
        self._c_host = _Host(
            self.thing(OfxImageEffectPropTemporalClipAccess=[int(temporal)]).handle,
            CFUNCTYPE(c_void_p, c_void_p, c_char_p, c_int)(self._fetch),
        )
        library_functions = ctypes.CDLL(str(library))
        library_functions.OfxGetPlugin.restype = POINTER(_Plugin)
        assert library_functions.OfxGetNumberOfPlugins() == 1
        self.plugin = library_functions.OfxGetPlugin(0).contents
        self.plugin.set_host(ctypes.addressof(self._c_host))
        assert self.act("OfxActionLoad") == OK
        self.descriptor = self.thing()
        assert self.act("OfxActionDescribe", self.descriptor) == OK

    def thing(self, **values: list[Any]) -> Thing:
        """Something new with a handle."""
        thing = Thing(next(self._handles), dict(values))
        self._things[thing.handle] = thing
        return thing

    def act(self, action: str, on: Thing | None = None, given: Thing | None = None, got: Thing | None = None) -> int:
        """One action's status; images must be given back by its end."""
        self._local.action = action
        handles = [None if thing is None else thing.handle for thing in (on, given, got)]
        start = time.perf_counter()
        status = int(self.plugin.main(action.encode(), *handles))
        self.last_s = time.perf_counter() - start
        if any(self._open_images[image] for image in self._local.__dict__.pop("mine", set())):
            self.violations.append(f"{action} keeps an image")
        return status

    def instance(self, context: str = "OfxImageEffectContextFilter", **effect: list[Any]) -> Thing:
        """A new instance with the parameters' defaults; `effect`: properties of its own."""
        described = self.thing()
        given = self.thing(OfxImageEffectPropContext=[context])
        assert self.act("OfxImageEffectActionDescribeInContext", described, given) == OK
        made = self.thing(**effect)
        for name, part in described.parts.items():
            made.parts[name] = self.thing(**part.values)
            made.parts[name].value = part.values.get("OfxParamPropDefault", [0])[0]
        assert self.act("OfxActionCreateInstance", made) == OK
        self._instances.append(made)
        return made

    def destroy(self, instance: Thing) -> None:
        """The user removes an effect."""
        self._instances.remove(instance)
        assert self.act("OfxActionDestroyInstance", instance) == OK

    def change(self, instance: Thing, **values: Any) -> None:
        """The user changes parameters, or presses the button whose value is None."""
        for name, value in values.items():
            instance.parts[name].value = value
            given = self.thing(OfxPropName=[name], OfxPropChangeReason=["OfxChangeUserEdited"])
            assert self.act("OfxActionInstanceChanged", instance, given) == OK

    def render(
        self,
        instance: Thing,
        time: float,
        source: Array,
        layout: Layout | None = None,
        **arguments: list[Any],
    ) -> Array:
        """(H, W, 4) what becomes of a source picture of the same shape; top row first.

        `arguments`: of the action.
        """
        layout = layout or Layout()
        pixels = source.astype(DEPTHS[layout.depth])
        images = {
            "Source": Image(pixels, layout, self.thing()),
            "Output": Image(np.full_like(pixels, 77), layout, self.thing()),
        }
        self._local.images = {instance.parts[name].handle: image for name, image in images.items()}
        self._local.time = time
        height, width, _ = pixels.shape
        given = self.thing(OfxPropTime=[time], OfxImageEffectPropRenderWindow=[0, 0, width, height])
        given.values |= {"OfxImageEffectPropRenderScale": [1.0, 1.0]} | arguments
        sequence = self.thing(OfxImageEffectPropFrameRange=[time, time])
        assert self.act("OfxImageEffectActionBeginSequenceRender", instance, sequence) in (OK, REPLY_DEFAULT)
        assert self.act("OfxImageEffectActionRender", instance, given) == OK
        self.render_s = self.last_s
        assert self.act("OfxImageEffectActionEndSequenceRender", instance, sequence) in (OK, REPLY_DEFAULT)
        assert (images["Source"].pixels() == pixels).all(), "the source was written to"
        return images["Output"].pixels()

    def unload(self) -> None:
        """The plugin lets go of everything."""
        for instance in list(self._instances):
            self.destroy(instance)
        assert self.act("OfxActionUnload") == OK

    # ---- Suites

    def _fetch(self, _host: int, name: bytes, version: int) -> int | None:
        key = (name.decode(), version)
        if key not in self._suites or (
            self.optional is not None and key[0] not in _NEEDED and key not in self.optional
        ):
            return None
        return ctypes.addressof(self._suites[key])

    def _suite(self, *functions: tuple[Any, tuple[Any, ...]]) -> Any:
        callbacks = [CFUNCTYPE(c_int, *types)(function) for function, types in functions]
        self._kept.append(callbacks)
        return (c_void_p * len(callbacks))(*(ctypes.cast(callback, c_void_p) for callback in callbacks))

    def _make_suites(self) -> dict[tuple[str, int], Any]:
        handle, name, out = c_void_p, c_char_p, POINTER(c_void_p)
        kinds = (c_void_p, c_char_p, c_double, c_int)
        no = (_refuse, (c_void_p,))
        persistent = (handle, name, name, name, name)
        return {
            ("OfxPropertySuite", 1): self._suite(
                *((self._set, (handle, name, c_int, kind)) for kind in kinds),
                *((self._set_n, (handle, name, c_int, POINTER(kind))) for kind in kinds),
                *((self._get, (handle, name, c_int, POINTER(kind))) for kind in kinds),
                *((self._get_n, (handle, name, c_int, POINTER(kind))) for kind in kinds),
                no,
                (self._dimension, (handle, name, POINTER(c_int))),
            ),
            ("OfxImageEffectSuite", 1): self._suite(
                (self._same, (handle, out)),
                (self._same, (handle, out)),
                (self._define_clip, (handle, name, out)),
                (self._part, (handle, name, out, out)),
                (self._same, (handle, out)),
                (self._image, (handle, c_double, c_void_p, out)),
                (self._release, (handle,)),
                (self._region, (handle, c_double, POINTER(c_double))),
                (self._abort, (handle,)),
                *((_refuse, (handle, c_size_t, out)), no, (_refuse, (handle, out)), no),
            ),
            ("OfxParameterSuite", 1): self._suite(
                (self._define, (handle, name, name, out)),
                (self._part, (handle, name, out, out)),
                (self._same, (handle, out)),
                (self._same, (handle, out)),
                (self._value, (handle, c_void_p)),
                *(no,) * 3,
                (self._set_text, (handle, name)),
                *(no,) * 9,
            ),
            ("OfxMessageSuite", 1): self._suite((self._message, persistent)),
            ("OfxMessageSuite", 2): self._suite(
                (self._message, persistent), (self._message, persistent), (self._clear, (handle,))
            ),
            ("OfxProgressSuite", 1): self._suite(
                (self._start, (handle, name)), (self._update, (handle, c_double)), (self._end, (handle,))
            ),
            ("OfxProgressSuite", 2): self._suite(
                (self._start_named, (handle, name, name)), (self._update, (handle, c_double)), (self._end, (handle,))
            ),
        }

    def _set(self, handle: int, name: bytes, index: int, value: Any) -> int:
        values = self._things[handle].values.setdefault(name.decode(), [])
        if index > len(values):
            return BAD_INDEX
        values[index : index + 1] = [value.decode() if isinstance(value, bytes) else value]
        return OK

    def _set_n(self, handle: int, name: bytes, count: int, values: Any) -> int:
        return max(self._set(handle, name, i, values[i]) for i in range(count))

    def _get(self, handle: int, name: bytes, index: int, out: Any) -> int:
        thing = self._things.get(handle)
        if thing is None:
            return BAD_HANDLE
        values = thing.values.get(name.decode())
        if values is None or name.decode() in self._hidden:
            return UNKNOWN
        if index >= len(values):
            return BAD_INDEX
        value = values[index]
        if isinstance(value, str) != (out._type_ is c_char_p):
            return UNKNOWN
        if isinstance(value, str):
            value = ctypes.create_string_buffer(value.encode())
            thing.kept.append(value)
            out[0] = ctypes.cast(value, c_char_p)
        else:
            out[0] = value if out._type_ in (c_double, c_void_p) else int(value)
        return OK

    def _get_n(self, handle: int, name: bytes, count: int, out: Any) -> int:
        for i in range(count):
            one = type(out)(out._type_.from_address(ctypes.addressof(out.contents) + i * ctypes.sizeof(out._type_)))
            if (status := self._get(handle, name, i, one)) != OK:
                return status
        return OK

    def _dimension(self, handle: int, name: bytes, out: Any) -> int:
        out[0] = len(self._things[handle].values.get(name.decode(), []))
        return OK

    def _same(self, handle: int, out: Any) -> int:
        out[0] = handle
        return OK

    def _part(self, handle: int, name: bytes, out: Any, properties: Any) -> int:
        part = self._things[handle].parts.get(name.decode())
        if part is None:
            return UNKNOWN
        for pointer in (out, properties):
            if pointer:
                pointer[0] = part.handle
        return OK

    def _define(self, handle: int, kind: bytes, name: bytes, out: Any) -> int:
        part = self.thing(OfxParamPropType=[kind.decode()])
        self._things[handle].parts[name.decode()] = part
        out[0] = part.handle
        return OK

    def _define_clip(self, handle: int, name: bytes, out: Any) -> int:
        return self._define(handle, b"clip", name, out)

    def _value(self, handle: int, out: int) -> int:
        thing = self._things[handle]
        if isinstance(thing.value, str):
            text = ctypes.create_string_buffer(thing.value.encode())
            thing.kept.append(text)
            c_void_p.from_address(out).value = ctypes.addressof(text)
        elif isinstance(thing.value, float):
            c_double.from_address(out).value = thing.value
        else:
            c_int.from_address(out).value = thing.value or 0
        return OK

    def _set_text(self, handle: int, value: bytes) -> int:
        if self._local.action != "OfxActionInstanceChanged":
            self.violations.append(f"a parameter is set in {self._local.action}")
        self._things[handle].value = value.decode()
        return OK

    def _image(self, clip: int, time: float, _region: int, out: Any) -> int:
        is_render = self._local.action == "OfxImageEffectActionRender"
        image = self._local.images.get(clip) if is_render else None
        if not is_render or self._local.time != time:
            image = self._other_image(self._things[clip], time)
        if image is None or (not is_render and self._local.action != "OfxActionInstanceChanged"):
            return FAILED
        self._open_images[image.thing.handle] += 1
        self._local.__dict__.setdefault("mine", set()).add(image.thing.handle)
        out[0] = image.thing.handle
        return OK

    def _other_image(self, clip: Thing, time: float) -> Image | None:
        self.fetched.append(time)
        pixels = None if clip.frames is None else clip.frames(time)
        if pixels is None:
            return None
        layout = clip.layout or Layout()
        image = Image(pixels.astype(DEPTHS[layout.depth]), layout, self.thing())
        # Alive as long as the host; pictures of tests are small.
        clip.kept.append(image)
        return image

    def _release(self, image: int) -> int:
        if self._open_images[image] < 1:
            self.violations.append("an image is released that is not open")
        self._open_images[image] -= 1
        return OK

    def _region(self, clip: int, _time: float, out: Any) -> int:
        edges = self._things[clip].values.get("region")
        if edges is None:
            return FAILED
        for i in range(4):
            out[i] = edges[i]
        return OK

    def _abort(self, handle: int) -> int:
        return int(self._things[handle].abort())

    def _message(self, _handle: int, _kind: bytes, _id: bytes, form: bytes, text: bytes) -> int:
        assert form == b"%s"
        self.messages.append(text.decode())
        return OK

    def _clear(self, _handle: int) -> int:
        self.messages.append("")
        return OK

    def _start(self, _handle: int, _label: bytes) -> int:
        return OK

    def _start_named(self, _handle: int, _label: bytes, _id: bytes) -> int:
        return OK

    def _update(self, _handle: int, share: float) -> int:
        return OK if self.progress(share) else REPLY_NO

    def _end(self, _handle: int) -> int:
        return OK


_NEEDED = ("OfxPropertySuite", "OfxImageEffectSuite", "OfxParameterSuite")


def _refuse(*_: object) -> int:
    return UNKNOWN
