"""SGRRG (Wang et al., CMIG 2025): a report written from patches and from the scene graph of the image.

B studies, P patches, E width of the extractor, D width of the transformer, R regions, N boxes of an image, M attributes of
the region that has most, G sub-graphs (chosen boxes of all studies). Source of the numbers and of the order of operations:
the paper and the behaviour of the released code (Markin-Wang/SGRRG).
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from models.family import FEATURE_DROPOUT, FamilySystem, captioner_settings, stack_projections
from modules.artefact import read_manifest
from modules.checkpoint import is_ours, rename_keys
from modules.errors import InputError
from modules.flags import TRAIN, Flag, fraction, natural, not_negative, positive_int
from modules.nets.scene_graph import (
    AttributeHeads,
    BoxFeatures,
    GraphDecoderLayer,
    GraphEncoder,
    RegionSelector,
    contrast_loss,
    side_by_side,
)
from modules.nets.swin import torchvision_keys
from modules.nets.transformer import Attention
from modules.precision import at_least_float32
from modules.text.labels import CHEXPERT_14
from modules.text.regions import GraphLayout

FLAGS = (
    FEATURE_DROPOUT,
    Flag("sgrrg", "scene_graphs", str, None, "scene graphs of the images, or none: no graph, a transformer beside a disease "
         "head [scene_graphs.jsonl in <knowledge_dir>, else in <data_dir>]", keep="path"),
    Flag("sgrrg", "oracle_graph", bool, False, "generate from the true graph of the report instead of the predicted one; "
         "marked in every table"),
    Flag("sgrrg", "regions", natural, 0, "use the first so many regions of the file's list, 0 = all", keep="shape"),
    Flag("sgrrg", "region_memory", natural, 512, "rows of the region selector's memory, 0 = no memory", keep="shape"),
    Flag("sgrrg", "region_topk", positive_int, 32, "rows of that memory that answer, per head", keep="default"),
    Flag("sgrrg", "region_heads", positive_int, 32, "heads of that memory", keep="shape"),
    Flag("sgrrg", "region_threshold", fraction, 0.2, "a region with a box makes a sub-graph when its probability exceeds this",
         keep="default"),
    Flag("sgrrg", "attribute_threshold", fraction, 0.5, "an attribute becomes a node when its probability exceeds this",
         keep="default"),
    Flag("sgrrg", "disease", not_negative, 0.25, "weight of the loss of the 14 diseases", of=TRAIN, keep="default"),
    Flag("sgrrg", "region", not_negative, 0.25, "weight of the loss of the regions that the report speaks of", of=TRAIN,
         keep="default"),
    Flag("sgrrg", "attribute", not_negative, 0.1, "weight of the loss of the attributes", of=TRAIN, keep="default"),
    Flag("sgrrg", "contrast", not_negative, 0.1, "weight of the contrastive loss of the sub-graphs, 0 = off", of=TRAIN,
         keep="default"),
    Flag("sgrrg", "contrast_margin", fraction, 0.4, "margin: a normal and an abnormal sub-graph of a region are penalised above "
         "this cosine", of=TRAIN, keep="default"),
)  # fmt: skip

# The released script's numbers (run_cgnome), for Chest ImaGenome's part of MIMIC-CXR.
_MIMIC = {
    "image_size": 224, "resize_filter": "bilinear", "augment": "rotate", "max_views": 1, "visual_extractor": "swin_b",
    "extractor_freeze": "none", "dilate": False, "d_model": 512, "d_ff": 512, "num_layers": 3, "feature_dropout": 0.2,
    "max_seq_length": 100, "max_gen_length": 99, "threshold": 10, "cleaning": "mimic_cxr", "reference_words": 99,
    "reference_threshold": 10, "beam_size": 3, "beam_search": "released", "batch_size": 384, "drop_last": True, "epochs": 30,
    "lr_ve": 1e-4, "lr_ed": 2e-4, "weight_decay": 5e-5, "warmup_epochs": 5, "step_size": 10, "lr_gamma": 0.8,
    "clip_norm": 0.0, "clip_value": 0.1, "precision": "fp16", "fp16_scale": 256.0, "validate_from": 8, "early_stop": 8,
    "monitor_metric": "r2gen/bmsum", "seed": 9223, "image_check": "quick", "num_workers": 8, "image_cache": False,
}  # fmt: skip
# Ours: they test on IU X-Ray, but do not train there.
_IU = {
    **_MIMIC, "max_seq_length": 60, "max_gen_length": 59, "threshold": 3, "cleaning": "iu_xray", "reference_words": 59,
    "reference_threshold": 3, "batch_size": 16, "drop_last": False, "lr_ve": 5e-5, "lr_ed": 1e-4, "precision": "float32",
    "validate_from": 1, "image_check": "full", "num_workers": 2, "image_cache": True,
}  # fmt: skip
_MINIATURE = {  # chosen by CIDEr, as the other systems: one sentence for all has the best BLEU-4
    **_IU, "visual_extractor": "efficientnet_lite0", "extractor_freeze": "stem", "d_model": 128, "d_ff": 256, "num_heads": 4,
    "num_layers": 2, "feature_dropout": 0.1, "region_memory": 64, "region_topk": 16, "max_seq_length": 64,
    "max_gen_length": 63, "batch_size": 8, "epochs": 8, "lr_ve": 3e-4, "lr_ed": 1e-3, "warmup_epochs": 1, "step_size": 6,
    "lr_gamma": 0.3, "clip_norm": 1.0, "clip_value": 0.0, "early_stop": 0, "monitor_metric": "r2gen/CIDEr", "seed": 42,
}  # fmt: skip


class SGRRG(FamilySystem):
    """The decoder looks at the patches and at one vector per region that the report will speak of.

    In training the regions and their attributes are those of the report; in evaluation they are predicted from the image
    and its boxes (`oracle`: those of the report, an upper bound). layout: regions and attribute names, None = no scene
    graph: a transformer beside a disease head. regions: the first so many of the layout are used, 0 = all.
    """

    title = "SGRRG"
    flags = FLAGS
    sizes = (*FamilySystem.sizes, ("attributes of --scene_graphs", "graph_encoder.attribute.weight", 0))
    presets = {"iu_xray": _IU, "mimic_cxr": _MIMIC, "miniature": _MINIATURE, "custom": _IU}
    released_search = "slots"
    idle_parameters = True  # heads of regions that no report of the batch speaks of

    def __init__(self, *, layout=None, regions: int = 0, oracle: bool = False, region_memory: int = 512, region_heads: int = 32,
                 region_topk: int = 32, region_threshold: float = 0.2, attribute_threshold: float = 0.5, disease: float = 0.25,
                 region: float = 0.25, attribute: float = 0.1, contrast: float = 0.1, contrast_margin: float = 0.4,
                 width: int, heads: int, inner: int, layers: int, dropout: float, **settings) -> None:  # fmt: skip
        shape: dict[str, Any] = {"heads": heads, "inner": inner, "dropout": dropout}
        plain: dict[str, Any] = {"norm": nn.LayerNorm, "plain_norm": nn.LayerNorm, "activation": F.gelu, "place_patches": False}
        super().__init__(width=width, layers=layers, decoder_layer=GraphDecoderLayer, **shape, **plain, **settings)
        seen = self.extractor.width
        self.layout, self.oracle, self.contrast_margin = layout, oracle, contrast_margin
        self.region_threshold, self.attribute_threshold = region_threshold, attribute_threshold
        self.project_norm, self.disease = nn.LayerNorm(width), nn.Linear(seen, len(CHEXPERT_14))
        self.loss_weights |= {"disease": disease}
        if layout is not None:
            sizes = layout.heads[: regions or None]
            self.select = RegionSelector(
                seen, len(sizes), rows=region_memory, heads=region_heads, topk=region_topk, dropout=dropout
            )
            self.box_features = BoxFeatures(seen, dropout)
            self.attribute_heads = AttributeHeads(seen, sizes)
            self.graph_encoder = GraphEncoder(seen, sizes, width, layers=layers, activation=F.gelu, **shape)
            self.register_buffer("head_sizes", torch.tensor(sizes), persistent=False)
            self.counted_sizes = torch.tensor(sizes)  # no buffer: counts are asked for on the CPU, before a batch moves
            self.loss_weights |= {"region": region, "attribute": attribute, "contrast": contrast}
        for name, part in self.named_children():
            if name != "extractor":
                part.apply(start)

    def needs(self, training):
        fields = super().needs(training) | ({"labels"} if training else set())
        if self.layout is None:
            return fields
        return fields | {"boxes"} | ({"graph"} if training or self.oracle else set())

    # -- the image and its graph -----------------------------------------------------------------------------------

    def embed_patches(self, features):
        return self.feature_dropout(F.gelu(self.project_norm(self.project(features))))

    def lookup(self, batch, features):
        pooled = features.mean(1)
        memory = {"diseases": self.disease(pooled)}
        return memory if self.layout is None else memory | self.graph(batch, features, self.select(pooled))

    def graph(self, batch, features: torch.Tensor, regions: torch.Tensor) -> dict[str, torch.Tensor]:
        """The sub-graphs of a batch, from features [B, P, E] and the regions' logits [B, R].

        For every study: "regions" [B, R]; "chosen" bool [B, N], the boxes that make a sub-graph. Where any study has one:
        "graph_mask" bool [B, 1, 1, G'] and per layer "graph_keys.i", "graph_values.i" [B, heads, G', D / heads]; in
        evaluation "attributes" [B, N, M], probabilities at the chosen boxes; in training, by sub-graph, "of" [G] their
        regions, "graphs" [G, D], "logits" [G, M].
        """
        chosen = self.chosen(batch, regions)
        memory = {"regions": regions, "chosen": chosen}
        study, box = chosen.nonzero(as_tuple=True)
        if not len(study):
            return memory
        of, side = batch.box_regions[study, box], batch.images.shape[-1]
        first = features[:, : features.shape[1] // batch.images.shape[1]]  # boxes are those of a study's first image
        cells = round(first.shape[1] ** 0.5)  # images are square
        boxes = self.box_features(first.mT.unflatten(-1, (cells, cells)), study, batch.boxes[study, box], side)
        logits = at_least_float32(self.attribute_heads(boxes, of))
        if self.reads_report:
            attributes = batch.attributes[study, box, : logits.shape[1]]
        else:
            attributes = logits.sigmoid() > self.attribute_threshold
        graphs = self.graph_encoder(boxes, of, attributes)
        beside, real = side_by_side(graphs, chosen)
        memory["graph_mask"] = real[:, None, None]
        for number, layer in enumerate(self.decoder):
            memory[f"graph_keys.{number}"], memory[f"graph_values.{number}"] = layer.graphs(beside)
        if self.training:
            return memory | {"of": of, "graphs": graphs, "logits": logits}
        found = logits.new_zeros(*chosen.shape, logits.shape[1])
        return memory | {"attributes": found.index_put((study, box), logits.sigmoid())}

    @property
    def reads_report(self) -> bool:
        """Whether the graph is the true one, of the report."""
        return self.training or self.oracle

    def chosen(self, batch, regions: torch.Tensor) -> torch.Tensor:
        """Which boxes make a sub-graph, bool [B, N]: of regions that the report speaks of, or by the logits [B, R] will."""
        known = (batch.box_regions >= 0) & (batch.box_regions < regions.shape[1])
        if self.reads_report:
            return batch.box_chosen & known
        likely = at_least_float32(regions).sigmoid() > self.region_threshold
        return likely.gather(1, batch.box_regions * known) & known

    def looked_at(self, memory, number):
        keys, values, mask = super().looked_at(memory, number)
        graph_keys, graph_values = memory.get(f"graph_keys.{number}"), memory.get(f"graph_values.{number}")
        return (keys, graph_keys), (values, graph_values), (mask, memory.get("graph_mask"))

    # -- training --------------------------------------------------------------------------------------------------

    def losses(self, batch):
        """Beside "ce": "disease" and "region" (means over B x 14, B x R), "attribute" (over the logits of all sub-graphs),
        "contrast" (over the pairs of this process's batch)."""
        memory = self.encode(batch)
        losses = self.word_losses(batch, memory)
        losses["disease"] = binary(memory["diseases"], batch.labels == 1).mean()
        if self.layout is None:
            return losses
        regions = memory["regions"]
        losses["region"] = binary(regions, batch.region_labels[:, : regions.shape[1]]).mean()
        losses["attribute"] = losses["contrast"] = regions.new_zeros(())
        if "of" in memory:
            of, logits, chosen = memory["of"], memory["logits"], memory["chosen"]
            each = binary(logits, batch.attributes[chosen][:, : logits.shape[1]])  # 0 where a region has no such attribute
            losses["attribute"] = each.sum() / self.head_sizes[of].sum()
            if self.loss_weights["contrast"]:
                losses["contrast"] = contrast_loss(memory["graphs"], of, batch.box_abnormal[chosen], self.contrast_margin)
        return losses

    def loss_counts(self, batch):
        counts = super().loss_counts(batch)
        if self.layout is None:
            return counts
        known = (batch.box_regions >= 0) & (batch.box_regions < len(self.counted_sizes))
        each = self.counted_sizes[batch.box_regions * known]
        return counts | {"attribute": float((each * (batch.box_chosen & known)).sum())}

    # -- columns of the predictions file -----------------------------------------------------------------------------

    def remarks(self, batch, memory):
        """ "regions" and "attributes": the sub-graphs of a report in the order of their boxes, with probabilities."""
        if self.layout is None:
            return {}
        graphs = self.sub_graphs(batch, memory)
        named = lambda name, value: name if self.oracle else f"{name} {value:.2f}"  # noqa: E731
        inside = lambda names: ", ".join(named(*pair) for pair in names.items())  # noqa: E731
        return {
            "regions": ["|".join(named(g["region"], g["probability"]) for g in row) for row in graphs],
            "attributes": ["; ".join(f"{g['region']}: {inside(g['attributes'])}" for g in row) for row in graphs],
        }

    def sub_graphs(self, batch, memory) -> list[list[dict]]:
        """Per study its sub-graphs: {"region", "probability", "box" (x0 y0 x1 y1, fractions of the image), "attributes"
        {name: probability}}; of the true graph the attributes are the report's, with the probability predicted for them."""
        likely = at_least_float32(memory["regions"]).sigmoid().tolist()
        side, result = batch.images.shape[-1], []
        found = memory["attributes"].tolist() if "attributes" in memory else []
        for row, chosen in enumerate(memory["chosen"].tolist()):
            graphs = []
            for number, box in enumerate(batch.boxes[row].tolist()):
                if not chosen[number]:
                    continue
                region = int(batch.box_regions[row, number])
                values = found[row][number]
                if self.oracle:
                    true = batch.attributes[row, number].tolist()
                else:
                    true = [value > self.attribute_threshold for value in values]
                names = {
                    name: values[n]
                    for n, name in enumerate(self.layout.attributes[region])
                    if true[n]
                }
                place = [round(edge / side, 4) for edge in box]
                graphs.append({"region": self.layout.regions[region], "probability": likely[row][region], "box": place,
                               "attributes": names})  # fmt: skip
            result.append(graphs)
        return result

    # -- building ----------------------------------------------------------------------------------------------------

    @classmethod
    def settle(cls, values, typed, *, carried) -> None:
        if values["scene_graphs"] is None:
            places = [Path(values[folder]) / "scene_graphs.jsonl" for folder in ("knowledge_dir", "data_dir")]
            values["scene_graphs"] = str(next((place for place in places if place.is_file()), places[0]))

    @classmethod
    def inputs(cls, args, *, training):
        if args.scene_graphs == "none":
            return {"labels"} if training else set()
        if training:
            return {"labels", "scene_graphs", "true_graph"}
        return {"scene_graphs", "true_graph"} if args.oracle_graph else {"scene_graphs"}

    @classmethod
    def marks(cls, args):
        return ("oracle graph",) if args.oracle_graph else ()

    @classmethod
    def check(cls, args, problems, *, training, carried=False) -> None:
        super().check(args, problems, training=training, carried=carried)
        problems.check(args.max_views == 1, f"--max_views {args.max_views}: SGRRG looks at one image of a study")
        if args.scene_graphs == "none":
            problems.check(not args.oracle_graph, "--oracle_graph needs --scene_graphs")
            return
        problems.check(not (args.oracle_graph and args.image), "--oracle_graph: a new --image has no report to read it from")
        text = f"--region_topk {args.region_topk} exceeds --region_memory {args.region_memory}"
        problems.check(args.region_memory == 0 or args.region_topk <= args.region_memory, text)
        turned = ("rotate", "aligned", "none")
        text = f"--augment {args.augment}: boxes follow {', '.join(turned)} alone"
        problems.check(not training or args.augment in turned, text)

    @classmethod
    def build(cls, args, tokenizer, parts=None) -> "SGRRG":
        """The layout of the scene graph comes from the checkpoint, else from the file. InputError: they differ."""
        layout = None
        if parts is not None and "scene_graphs" in parts:
            layout = GraphLayout.from_state(parts["scene_graphs"])
            if not args.image:
                refuse_difference(layout, layout_of(args.scene_graphs), args.scene_graphs)
        elif parts is None and args.scene_graphs != "none":
            layout = layout_of(args.scene_graphs)
        names = ("regions", "region_memory", "region_heads", "region_topk", "region_threshold", "attribute_threshold",
                 "disease", "region", "attribute", "contrast", "contrast_margin")  # fmt: skip
        own = {name: getattr(args, name) for name in names}
        settings = captioner_settings(args, tokenizer)
        return cls(layout=layout, oracle=args.oracle_graph, **own, **settings)

    def load_start(self, content, source) -> None:
        if is_ours(content) and self.layout is not None and "scene_graphs" in content["parts"]:
            refuse_difference(GraphLayout.from_state(content["parts"]["scene_graphs"]), self.layout, source)
        super().load_start(content, source)

    def parts(self):
        return {} if self.layout is None else {"scene_graphs": self.layout.state()}

    @classmethod
    def released_state(cls, state):
        """Every key of the authors' has a rule; those of the Swin follow Microsoft's names."""
        state = {key.removeprefix("module."): value for key, value in state.items()}
        extractor = {key.removeprefix(EXTRACTOR): value for key, value in state.items() if key.startswith(EXTRACTOR)}
        rest = {key: value for key, value in state.items() if not key.startswith(EXTRACTOR)}
        renamed = stack_projections(rename_keys(rest, [(re.compile(pattern), name) for pattern, name in RULES], cls.title))
        try:
            return renamed | {f"extractor.body.{key}": value for key, value in torchvision_keys(extractor).items()}
        except KeyError as error:
            raise InputError(f"not {cls.title}'s released layout: unknown key {EXTRACTOR}{error.args[0]}") from error


def layout_of(path: str) -> GraphLayout:
    """Names of regions and attributes of a file of scene graphs, from its manifest. InputError: it has none."""
    try:
        return GraphLayout.from_state(read_manifest(path) or {})
    except KeyError as error:
        raise InputError(f"--scene_graphs {path}: no manifest beside it that names {error.args[0]}") from error


def refuse_difference(carried: GraphLayout, found: GraphLayout, where: str) -> None:
    """InputError where two scene graphs do not have the same names."""
    text = found.difference(carried)
    if text:
        raise InputError(f"{where} has other names than the model was trained with: {text}")


def start(part: nn.Module) -> None:
    """Every matrix of a Linear, an Embedding or an Attention starts N(0, 0.02), every bias 0."""
    if isinstance(part, (nn.Linear, nn.Embedding)):
        nn.init.normal_(part.weight, std=0.02)
    if isinstance(part, Attention):
        nn.init.normal_(part.in_proj_weight, std=0.02)
        nn.init.zeros_(part.in_proj_bias)
    if isinstance(part, nn.Linear):
        nn.init.zeros_(part.bias)


def binary(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of each logit."""
    logits = at_least_float32(logits)
    return F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="none")


# -- released files ----------------------------------------------------------------------------------------------------

ATTENTIONS = {"self_attn": "self_attention", "cross_attn_img": "cross_attention", "cross_attn_sg": "graph_attention"}
NORMS = ("norm1", "norm2", "graph_norm", "norm3")  # of the decoder, in the order of its sublayers
TRUNKS = {"vision_encoder": "encoder", "scene_graph_encoder.sg_encoder": "graph_encoder.layers"}
ENDS = {"vision_encoder": "encoder_norm", "scene_graph_encoder.sg_encoder": "graph_encoder.end_norm", "decoder": "decoder_norm"}
_TRUNK, _END = "(vision_encoder|scene_graph_encoder\\.sg_encoder)", "(vision_encoder|scene_graph_encoder\\.sg_encoder|decoder)"
RULES = (
    (r"^att_embed\.([01])\.(.+)$", lambda m: f"{('project', 'project_norm')[int(m[1])]}.{m[2]}"),
    (rf"^{_TRUNK}\.layers\.(\d+)\.self_attn\.(.+)$", lambda m: f"{TRUNKS[m[1]]}.{m[2]}.attention.{m[3]}"),
    (
        rf"^{_TRUNK}\.layers\.(\d+)\.sublayer\.([01])\.norm\.(.+)$",
        lambda m: f"{TRUNKS[m[1]]}.{m[2]}.norm{int(m[3]) + 1}.{m[4]}",
    ),
    (
        rf"^{_END}\.layers\.(\d+)\.feed_forward\.w_([12]\..+)$",
        lambda m: f"{TRUNKS.get(m[1], m[1])}.{m[2]}.feed.linear{m[3]}",
    ),
    (rf"^{_END}\.norm\.(.+)$", lambda m: f"{ENDS[m[1]]}.{m[2]}"),
    (
        r"^decoder\.layers\.(\d+)\.(self_attn|cross_attn_img|cross_attn_sg)\.(.+)$",
        lambda m: f"decoder.{m[1]}.{ATTENTIONS[m[2]]}.{m[3]}",
    ),
    (r"^decoder\.layers\.(\d+)\.sublayer\.([0-3])\.norm\.(.+)$", lambda m: f"decoder.{m[1]}.{NORMS[int(m[2])]}.{m[3]}"),
    (r"^word_embedding\.word_embedding\.lut\.(.+)$", r"word.\1"),
    (r"^word_embedding\.pe$", None),  # sinusoids, built on construction
    (r"^rrg_head\.(.+)$", r"head.\1"),
    (r"^dis_head\.disease_head\.(.+)$", r"disease.\1"),
    (r"^region_selector\.memory$", "select.memory"),
    (r"^region_selector\.ff\.(.+)$", r"select.project.\1"),
    (r"^region_selector\.mem_proj\.(.+)$", r"select.project_memory.\1"),
    (r"^region_selector\.cmn\.(.+)$", r"select.respond.\1"),
    (r"^region_selector\.fuse_proj\.0\.(.+)$", r"select.fuse.\1"),
    (r"^region_selector\.region_head\.(.+)$", r"select.head.\1"),
    (r"^attribute_predictor\.ff\.([01])\.(.+)$", lambda m: f"box_features.{('linear', 'norm')[int(m[1])]}.{m[2]}"),
    (r"^attribute_predictor\.attribute_heads\.(.+)$", r"attribute_heads.heads.\1"),
    (r"^scene_graph_encoder\.token_type_embeddings\.(.+)$", r"graph_encoder.kind.\1"),
    (r"^scene_graph_encoder\.proj\.(.+)$", r"graph_encoder.project.\1"),
    (r"^scene_graph_encoder\.att_norm\.(.+)$", r"graph_encoder.norm.\1"),
    (r"^scene_graph_encoder\.att_embedding\.(.+)$", r"graph_encoder.attribute.\1"),
)
EXTRACTOR = "visual_extractor.model."
