"""Recognise zip archives that `torch.save` did not write, by the names of their files."""

import re
from collections.abc import Sequence

from lit_finetune.files.foreign_formats import CONVERT, UNPACK, from_arrays
from lit_finetune.files.terminal_text import printable

_FOREIGN = f"not a file of PyTorch's: {CONVERT}"
_EXPORTED = (
    "a program of `torch.export` (.pt2), not only weights. On a machine where you trust it, save "
    'the tensors alone, `torch.save(dict(torch.export.load("…").state_dict), "weights.pth")`, and '
    "load that file"
)
_MEMBERS = {
    r"(^|/)serialized_(exported_program|state_dict)|/\w+_weights_config\.json$": _EXPORTED,
    r"(^|/)(data/)?aotinductor/": (
        "a compiled program of PyTorch's (AOTInductor), without weights by name: take the network "
        'that it was made from, and save `torch.save(model.state_dict(), "weights.pth")`'
    ),
    r"\.npy$": f"a NumPy archive (.npz), not a file of PyTorch's; {from_arrays('numpy.load')}",
    r"\.weights\.h5$|(^|/)saved_model\.pb$|\.h5$": f"a model of Keras or TensorFlow, {_FOREIGN}",
    r"\.mlmodel$": f"a Core ML model, {_FOREIGN}",
    r"\.onnx$": f"an archive with an ONNX model, {_FOREIGN}",
    r"\.tflite$": f"an archive with a TensorFlow Lite model, {_FOREIGN}",
    r"(^|/)weights\.bin$|group1-shard": f"an archive with a TensorFlow.js model, {_FOREIGN}",
    r"\.pd(i?params|model)$": f"an archive with a PaddlePaddle model, {_FOREIGN}",
    r"(^|/)\.data/extern_modules$": (
        "an archive of `torch.package`, a program: on a machine where you trust it, save the "
        'tensors alone, `torch.save(model.state_dict(), "weights.pth")`'
    ),
}
"""What an archive is, by a pattern for the name of a file in it."""
_WEIGHTS = re.compile(r"\.(safetensors|pth|pt|th|ckpt|bin|t7|pth\.tar)$", re.IGNORECASE)
_IMAGE = re.compile(r"\.(jpe?g|png|gif|webp|bmp|tiff?|ppm)$", re.IGNORECASE)
_OFFICE = "[Content_Types].xml"


def foreign_archive(members: Sequence[str]) -> str:
    """What a zip archive is, and what to do; completes "the file is …".

    >>> foreign_archive(["run/best.pth"])
    "a zip archive, but not one of torch's: unpack it first, and give the file 'best.pth' in it"

    Args:
        members: The names of its files.
    """
    for pattern, description in _MEMBERS.items():
        if any(re.search(pattern, name) for name in members):
            return description
    files = [name for name in members if not name.endswith("/")]
    if _OFFICE in members:
        return "a document of an office program, not weights: give a weights file"
    if weights := [name for name in files if _WEIGHTS.search(name)]:
        return (
            f"a zip archive, but not one of torch's: {UNPACK}, and give the file "
            f"{printable(weights[0].split('/')[-1][:80])!r} in it"
        )
    if 2 * sum(bool(_IMAGE.search(name)) for name in files) > len(files):
        return (
            "a zip archive of pictures, not weights: they are data, so unpack it and give its "
            "folder as `data_dir`; weights are a file of their own"
        )
    some = ", ".join(repr(printable(name[:80])) for name in files[:3]) or "nothing"
    return (
        f"a zip archive, but not one of torch's: {UNPACK}, and give a weights file; it has {some}"
    )
