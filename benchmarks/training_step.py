"""What a training step costs, by part, and beside the published way of doing it.

    python -m benchmarks.training_step --batch_size 8 [--precision bf16] [--out results/training_step.json]

Published size (ResNet-101 at 300 pixels, 6 + 6 layers, 127 words), random weights and images, student and teacher on
different views. "naive" is benchmarks/published_size.py: teacher in the graph, DiagnosisBot in every pass, float32.
"""

import argparse
import statistics

import torch

from benchmarks.measure import add_shared, device_of, flops, interleaved, matrix_peak, peak_memory, ratio, report
from benchmarks.published_size import Naive, batch_of, system
from models.ekagen import Teacher


def measure(args) -> list[tuple[str, float, str]]:
    """The rows of the table."""
    device, precision = device_of(args)
    student, teacher, batch = system(0).to(device).train(), system(1).to(device), batch_of(args.batch_size, device)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    naive_teacher = system(1).to(device).train()
    naive = Naive(student, naive_teacher, device)

    def ours():
        with precision.region():
            found = student.losses(batch)
        optimizer.zero_grad(set_to_none=True)
        (found["ce"] + 0.01 * found["gid"]).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()

    def student_alone():
        with precision.region():
            logits = student.logits(student.encode(batch, "masked"), batch.tokens[:, :-1])
        logits.float().square().mean().backward()

    @torch.no_grad()
    def teacher_alone():
        with precision.region():
            teacher.logits(teacher.encode(batch, "complete"), batch.tokens[:, :-1])

    def published():
        loss = naive.losses(batch)
        optimizer.zero_grad(set_to_none=True)
        naive_teacher.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()

    student.teacher = Teacher(teacher)
    parts = {"ours": ours, "student, forward and backward": student_alone, "teacher, forward": teacher_alone, "naive": published}
    taken = interleaved(parts, args.repeats, device)
    step = statistics.median(taken["ours"])
    work, peak = flops(ours), matrix_peak(device, precision.kind)
    return [
        *((f"{name}, seconds per step", statistics.median(values), "s") for name, values in taken.items()),
        ("ours, studies per second", args.batch_size / step, "/s"),
        ("naive / ours", ratio(taken, "naive", "ours"), "times"),
        ("work of our step", work / 1e12, "TFLOP"),
        ("matrix peak, measured", peak / 1e12, "TFLOP/s"),
        ("share of the matrix peak", work / step / peak, ""),
        ("peak memory, both ways together", peak_memory(device), "GiB"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch_size", type=int, default=8)
    add_shared(parser)
    args = parser.parse_args()
    rows = measure(args)
    report(f"training step, {args.batch_size} studies, {args.precision}", rows, args, device_of(args)[0])


if __name__ == "__main__":
    main()
