"""PyTorch's export format, which loads with PyTorch alone; detection needs torchvision too."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from vitsplit.exporting.formats import Arrays, Precision, Traced, Written
from vitsplit.exporting.graph import Deform

SUFFIX = ".pt2"


class TorchFormat:
    """See ``formats.Format``."""

    deforms: ClassVar[tuple[Deform, ...]] = ("grid",)
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    extra: ClassVar[str] = "export"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)

    suffixes: ClassVar[tuple[str, ...]] = (SUFFIX,)

    def write(self, traced: Traced, folder: Path, precision: Precision) -> Written:
        """See ``formats.Format``."""
        found = [spec.arg.name for spec in traced.program.graph_signature.output_specs]
        path = folder / f"{traced.name}{SUFFIX}"
        torch.export.save(_without_steps(traced), path)
        nodes = dict(zip([*traced.outputs, *traced.hidden], found, strict=True))
        return Written(path, traced.inputs, traced.outputs, {step: nodes[name] for step, name in traced.steps.items()})

    def settings(self, precision: Precision) -> dict[str, str]:
        """See ``formats.Format``."""
        return {}

    def open(self, graph: Written, settings: Mapping[str, str], outputs: Sequence[str]) -> Callable[[Arrays], Arrays]:
        """See ``formats.Format``."""
        module: Any = torch.export.load(graph.path).module()
        nodes = {node.name: node for node in module.graph.nodes}
        kept = {step: nodes[node] for step, node in graph.steps.items() if node in nodes}
        names = [*outputs, *kept]
        if names != list(graph.outputs):
            (last,) = (node for node in module.graph.nodes if node.op == "output")
            kept = dict(zip(graph.outputs, last.args[0], strict=True)) | kept
            last.args = (tuple(kept[name] for name in names),)
            module.graph._codegen = torch.fx.graph.CodeGen()
            module.graph.eliminate_dead_code()
            module.recompile()

        @torch.no_grad()
        def run(values: Arrays) -> Arrays:
            found = module(*(torch.from_numpy(values[name]) for name in graph.inputs))
            return {name: tensor.numpy() for name, tensor in zip(names, found, strict=True)}

        return run

    def code(self, card: Mapping[str, Any]) -> str:
        """See ``formats.Format``. Loading a graph with objects needs the operators of torchvision."""
        kinds = {output["kind"] for head in card["heads"].values() for output in head["outputs"].values()}
        return ("import torchvision\n" if "boxes" in kinds else "") + (
            "for part in parts:\n"
            '    model = torch.export.load(part["files"][0]).module()\n'
            "    with torch.no_grad():\n"
            '        found = model(*(torch.as_tensor(values[name]) for name in part["inputs"]))\n'
            '    values.update((name, value.numpy()) for name, value in zip(part["outputs"], found))\n'
        )


def _without_steps(traced: Traced) -> ExportedProgram:
    """The program without intermediate tensors as outputs, and without the source files of its operators."""
    program, count = traced.program, len(traced.outputs)
    module = copy.deepcopy(program.graph_module)
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    output.args = (output.args[0][:count],)
    for part in module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            for record in ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "from_node"):
                node.meta.pop(record, None)
    module.graph.eliminate_dead_code()
    module.recompile()
    calls = copy.deepcopy(program.module_call_graph)
    signature = calls[0].signature
    assert signature is not None
    signature.outputs = signature.outputs[:count]
    signature.out_spec = pytree.tree_structure((0,) * count)
    trimmed = ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=replace(program.graph_signature, output_specs=program.graph_signature.output_specs[:count]),
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=[calls[0]],
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )
    # Assumptions on memory formats of views, which values do not depend on: they hold for sizes that the patch does not
    # divide, as in the traced example, and would refuse others.
    trimmed._guards_code = []
    return trimmed
