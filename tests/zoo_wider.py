"""Models of libraries for diffusion, medicine, sound and super-resolution; see :mod:`zoo_others`.

Nothing was built for them. Their classes want sizes of their own, so each stands here with
arguments that make it small, and with inputs; the names are those of the classes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from zoo_prepared import prepared

SCALE = 0.5  # of the weights: attention of random weights is chaotic else


class Small(NamedTuple):
    """A class's arguments, and what makes inputs."""

    inputs: Callable[[], Any]
    options: dict[str, Any]
    args: tuple[Any, ...] = ()


def floats(*shape):
    return lambda: torch.randn(shape)


def given(**shapes):
    """Inputs by name: shapes of floats, or tensors."""
    return lambda: {k: torch.randn(v) if isinstance(v, tuple) else v for k, v in shapes.items()}


def small(inputs, *args, **options):
    return Small(inputs, options, args)


STEPS, PARTS = torch.tensor([3, 7]), torch.tensor([0.3, 0.7])
TEXT, SEEN = (2, 5, 24), torch.ones(2, 5, dtype=torch.bool)
PLAIN = {"norm_num_groups": 8, "layers_per_block": 1, "block_out_channels": (16, 32)}
CODER = {
    "in_channels": 3, "out_channels": 3, "block_out_channels": (16, 32), "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
HEADS = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}
BLOCKS = ("ResBlock", "EfficientViTBlock")

DIFFUSERS = {
    "UNet2DModel": small(
        given(sample=(2, 3, 32, 32), timestep=STEPS), 32, 3, 3, attention_head_dim=8, **PLAIN,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    "UNet2DConditionModel": small(
        given(sample=(2, 4, 16, 16), timestep=STEPS, encoder_hidden_states=TEXT), 16, 4, 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2, cross_attention_dim=24, **PLAIN,
    ),
    "UNet3DConditionModel": small(
        given(sample=(2, 4, 2, 16, 16), timestep=STEPS, encoder_hidden_states=TEXT), 16, 4, 4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        attention_head_dim=8, cross_attention_dim=24, **PLAIN,
    ),
    "ControlNetModel": small(
        given(sample=(2, 4, 16, 16), timestep=STEPS, encoder_hidden_states=TEXT,
              controlnet_cond=(2, 3, 32, 32)), 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=2,
        cross_attention_dim=24, conditioning_embedding_out_channels=(8, 16), **PLAIN,
    ),
    "AutoencoderKL": small(floats(2, 3, 32, 32), layers_per_block=1, sample_size=32, **CODER),
    "AsymmetricAutoencoderKL": small(
        floats(2, 3, 32, 32), 3, 3, ("DownEncoderBlock2D",) * 2, (16, 32), 1,
        ("UpDecoderBlock2D",) * 2, (16, 32), 1, norm_num_groups=8, sample_size=32,
    ),
    "VQModel": small(floats(2, 3, 32, 32), num_vq_embeddings=16, layers_per_block=1, **CODER),
    "AutoencoderDC": small(
        floats(2, 3, 32, 32), 3, 4, encoder_block_types=BLOCKS, decoder_block_types=BLOCKS,
        encoder_block_out_channels=(16, 32), decoder_block_out_channels=(16, 32),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), attention_head_dim=8,
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
    ),
    "DiTTransformer2DModel": small(
        given(hidden_states=(2, 4, 16, 16), timestep=STEPS, class_labels=torch.tensor([1, 2])),
        in_channels=4, norm_num_groups=8, sample_size=16, patch_size=4, num_embeds_ada_norm=10,
        **HEADS,
    ),
    "PixArtTransformer2DModel": small(
        given(hidden_states=(2, 4, 16, 16), encoder_hidden_states=TEXT, timestep=STEPS,
              added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
        in_channels=4, out_channels=8, cross_attention_dim=32, sample_size=16, patch_size=4,
        caption_channels=24, use_additional_conditions=False, **HEADS,
    ),
    "SD3Transformer2DModel": small(
        given(hidden_states=(2, 4, 16, 16), encoder_hidden_states=TEXT, timestep=STEPS,
              pooled_projections=(2, 20)),
        sample_size=16, in_channels=4, out_channels=4, joint_attention_dim=24,
        caption_projection_dim=32, pooled_projection_dim=20, **HEADS,
    ),
    "FluxTransformer2DModel": small(
        given(hidden_states=(2, 16, 4), encoder_hidden_states=TEXT, timestep=PARTS,
              pooled_projections=(2, 20), img_ids=torch.zeros(16, 3), txt_ids=torch.zeros(5, 3)),
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=20,
        axes_dims_rope=(4, 4, 8),
    ),
    "AuraFlowTransformer2DModel": small(
        given(hidden_states=(2, 4, 16, 16), encoder_hidden_states=TEXT, timestep=PARTS),
        sample_size=16, in_channels=4, out_channels=4, num_mmdit_layers=1,
        num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=24, caption_projection_dim=32, pos_embed_max_size=64,
    ),
    "SanaTransformer2DModel": small(
        given(hidden_states=(2, 4, 16, 16), encoder_hidden_states=TEXT, timestep=STEPS),
        4, 4, 4, 8, 2, 4, 8, 32, 24, sample_size=16,
    ),
    "CogVideoXTransformer3DModel": small(
        given(hidden_states=(2, 2, 4, 8, 8), encoder_hidden_states=TEXT, timestep=STEPS),
        in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=24, sample_width=8,
        sample_height=8, sample_frames=5, max_text_seq_length=5, **HEADS,
    ),
    "LatteTransformer3DModel": small(
        given(hidden_states=(2, 4, 2, 8, 8), encoder_hidden_states=TEXT, timestep=STEPS),
        in_channels=4, out_channels=8, cross_attention_dim=32, sample_size=8, patch_size=2,
        caption_channels=24, video_length=2, **HEADS,
    ),
    "PriorTransformer": small(
        given(hidden_states=(2, 16), timestep=STEPS, proj_embedding=(2, 16),
              encoder_hidden_states=(2, 5, 16), attention_mask=SEEN),
        embedding_dim=16, num_embeddings=5, additional_embeddings=4, **HEADS,
    ),
    "WanTransformer3DModel": small(
        given(hidden_states=(2, 4, 2, 8, 8), timestep=STEPS, encoder_hidden_states=TEXT),
        (1, 2, 2), 2, 16, 4, 4, 24, 16, 64, 2, rope_max_seq_len=32,
    ),
    "LTXVideoTransformer3DModel": small(
        given(hidden_states=(2, 16, 4), encoder_hidden_states=TEXT, timestep=STEPS[:, None],
              encoder_attention_mask=SEEN, num_frames=1, height=4, width=4),
        in_channels=4, out_channels=4, cross_attention_dim=32, caption_channels=24, **HEADS,
    ),
    "StableAudioDiTModel": small(
        given(hidden_states=(2, 4, 16), timestep=PARTS, encoder_hidden_states=TEXT,
              global_hidden_states=(2, 1, 24)),
        sample_size=16, in_channels=4, out_channels=4, num_key_value_attention_heads=2,
        cross_attention_dim=24, time_proj_dim=16, global_states_input_dim=24,
        cross_attention_input_dim=24, **HEADS,
    ),
    "T5FilmDecoder": small(
        given(encodings_and_masks=[(torch.randn(2, 6, 32), torch.ones(2, 6))],
              decoder_input_tokens=(2, 12, 16), decoder_noise_time=PARTS),
        input_dims=16, targets_length=12, d_model=32, num_layers=2, num_heads=4, d_kv=8,
        d_ff=48, dropout_rate=0.0,
    ),
}  # fmt: skip

FLAT, VOLUME = floats(2, 1, 64, 64), floats(2, 1, 32, 32, 32)
VIT = {"hidden_size": 48, "mlp_dim": 64, "num_heads": 4, "spatial_dims": 2}
FEATURES = (16, 16, 32, 32, 64, 16)

MONAI = {
    "UNet": small(VOLUME, 3, 1, 2, (8, 16, 32), (2, 2), num_res_units=2),
    "BasicUNet": small(FLAT, 2, 1, 2, features=FEATURES),
    "BasicUNetPlusPlus": small(FLAT, 2, 1, 2, features=FEATURES),
    "AttentionUnet": small(FLAT, 2, 1, 2, (8, 16, 32), (2, 2)),
    "SegResNet": small(FLAT, 2, 8, 1, 2),
    "SegResNetDS": small(FLAT, 2, 8, 1, 2, blocks_down=(1, 1, 1)),
    "DynUNet": small(
        FLAT, 2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[16, 32, 48], res_block=True
    ),
    "VNet": small(VOLUME, 3, 1, 2),
    "UNETR": small(floats(2, 1, 32, 32), 1, 2, 32, feature_size=8, **VIT),
    "SwinUNETR": small(
        FLAT, 1, 2, feature_size=12, spatial_dims=2, depths=(1, 1, 1, 1), num_heads=(3, 3, 3, 3)
    ),
    "ViT": small(floats(2, 1, 32, 32), 1, 32, 16, num_layers=2, classification=True, **VIT),
    "ViTAutoEnc": small(floats(2, 1, 32, 32), 1, (32, 32), (16, 16), num_layers=2, **VIT),
    "DenseNet": small(FLAT, 2, 1, 4, init_features=16, growth_rate=8, block_config=(2, 2)),
    "EfficientNetBN": small(
        FLAT, "efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=1, num_classes=4
    ),
    "ResNet": small(
        VOLUME, "basic", [1] * 4, [16, 32, 32, 64], spatial_dims=3, n_input_channels=1,
        num_classes=4,
    ),
    "SEResNet50": small(FLAT, layers=(1,) * 4, spatial_dims=2, in_channels=1, num_classes=4),
    "HighResNet": small(floats(2, 1, 32, 32), 2, 1, 2),
    "AutoEncoder": small(FLAT, 2, 1, 1, (8, 16), (2, 2), num_res_units=1),
    "FlexibleUNet": small(
        floats(2, 3, 64, 64), 3, 2, "efficientnet-b0", pretrained=False, spatial_dims=2
    ),
    "DAF3D": small(VOLUME, 1, 2),
    "DiffusionModelUNet": small(
        lambda: (torch.randn(2, 1, 16, 16), torch.tensor([1, 5])), 2, 1, 1, num_res_blocks=(1, 1),
        channels=(8, 16), attention_levels=(False, True), norm_num_groups=4, num_head_channels=8,
    ),
    "MedNeXt": small(
        floats(2, 1, 32, 32), 2, 8, 1, 2, encoder_expansion_ratio=2, decoder_expansion_ratio=2,
        bottleneck_expansion_ratio=2, blocks_down=(1, 1), blocks_bottleneck=1, blocks_up=(1, 1),
    ),
    "Restormer": small(
        floats(2, 1, 16, 16), 2, 1, 1, dim=8, num_blocks=(1, 1), heads=(1, 2),
        num_refinement_blocks=1,
    ),
    "DecoderOnlyTransformer": small(lambda: torch.randint(0, 20, (2, 12)), 20, 16, 32, 2, 4),
    "PatchDiscriminator": small(floats(2, 1, 32, 32), 2, 8, 1, num_layers_d=2),
}  # fmt: skip

WAVES = {
    "extractor_conv_layer_config": [(32, 10, 5), (32, 3, 2)], "encoder_embed_dim": 32,
    "encoder_projection_dropout": 0.0, "encoder_pos_conv_kernel": 8, "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2, "encoder_num_heads": 4, "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 64, "encoder_ff_interm_dropout": 0.0, "encoder_dropout": 0.0,
    "encoder_layer_drop": 0.0, "aux_num_out": 10,
}  # fmt: skip

TORCHAUDIO = {
    "Conformer": small(
        lambda: (torch.randn(2, 40, 32), torch.tensor([40, 40])), 32, 4, 64, 2, 7
    ),
    "DeepSpeech": small(floats(2, 1, 20, 40), 40, 64, 10),
    "Wav2Letter": small(floats(2, 13, 60), num_classes=10, input_type="mfcc", num_features=13),
    "ConvTasNet": small(
        floats(2, 1, 800), enc_num_feats=64, msk_num_feats=32, msk_num_hidden_feats=48,
        msk_num_layers=3, msk_num_stacks=2,
    ),
    "HDemucs": small(floats(2, 2, 8000), sources=["a", "b"], channels=8, nfft=1024, depth=4),
    "Emformer": small(
        lambda: (torch.randn(2, 17, 32), torch.tensor([16, 16])), 32, 4, 64, 2, 4,
        right_context_length=1,
    ),
    "WaveRNN": small(
        lambda: (torch.randn(2, 1, 48), torch.randn(2, 1, 16, 10)), [2, 2, 2], n_classes=16,
        hop_length=8, n_res_block=2, n_rnn=32, n_fc=32, n_freq=16, n_hidden=32, n_output=32,
    ),
    "wav2vec2_model": small(
        floats(2, 800), extractor_mode="group_norm", extractor_conv_bias=False,
        encoder_layer_norm_first=False, **WAVES,
    ),
    "wavlm_model": small(
        floats(2, 800), extractor_mode="layer_norm", extractor_conv_bias=True,
        encoder_num_buckets=8, encoder_max_distance=20, encoder_layer_norm_first=True, **WAVES,
    ),
    "squim_objective_model": small(
        floats(2, 1600), feat_dim=16, win_len=16, d_model=16, nhead=4, hidden_dim=16,
        num_blocks=1, rnn_type="LSTM", chunk_size=7,
    ),
}  # fmt: skip

WINDOWS = {
    "img_size": 32, "embed_dim": 24, "depths": [2], "num_heads": [4], "window_size": 8,
    "mlp_ratio": 2, "upscale": 2,
}  # fmt: skip
RGB, NESTED = floats(2, 3, 32, 32), {"enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}

SPANDREL = {  # by module and class
    "ESRGAN.RRDBNet": small(RGB, num_filters=16, num_blocks=2),
    "Compact.SRVGGNetCompact": small(RGB, num_feat=16, num_conv=3),
    "SwinIR.SwinIR": small(RGB, upsampler="pixelshuffle", **WINDOWS),
    "Swin2SR.Swin2SR": small(RGB, upsampler="pixelshuffledirect", **WINDOWS),
    "ATD.ATD": small(
        RGB, upsampler="pixelshuffledirect", category_size=64, num_tokens=8, **WINDOWS
    ),
    "OmniSR.OmniSR": small(RGB, num_feat=16, res_num=1, block_num=1, up_scale=2),
    "NAFNet.NAFNet": small(RGB, width=8, middle_blk_num=1, **NESTED),
    "KBNet.KBNet_s": small(RGB, width=8, middle_blk_num=1, **NESTED),
    "SCUNet.SCUNet": small(floats(2, 3, 64, 64), config=[1] * 7, dim=64),
    "DAT.DAT": small(
        RGB, img_size=32, embed_dim=24, depth=[2], num_heads=[4], split_size=[4, 8], upscale=2
    ),
    "RGT.RGT": small(RGB, img_size=32, embed_dim=24, depth=[2], num_heads=[4], upscale=2),
    "SAFMN.SAFMN": small(RGB, dim=16, n_blocks=2, upscaling_factor=2),
    "PLKSR.PLKSR": small(RGB, dim=16, n_blocks=2, upscaling_factor=2),
    "SPAN.SPAN": small(RGB, num_in_ch=3, num_out_ch=3, feature_channels=16, upscale=2),
    "DRUNet.DRUNet": small(RGB, in_nc=3, out_nc=3, nc=[8, 16, 24, 32], nb=1),
    "DnCNN.DnCNN": small(RGB, in_nc=3, out_nc=3, nc=16, nb=4),
    "GRL.GRL": small(
        RGB, img_size=32, embed_dim=24, depths=[2], num_heads_window=[2], num_heads_stripe=[2],
        window_size=8, stripe_size=[8, 8], upscale=2, upsampler="pixelshuffledirect",
    ),
    "RetinexFormer.RetinexFormer": small(RGB, n_feat=8, stage=1, num_blocks=[1, 1, 1]),
    "FDAT.FDAT": small(
        RGB, embed_dim=24, num_groups=1, depth_per_group=2, num_heads=3, window_size=8, scale=2
    ),
}  # fmt: skip


def _of_diffusers(name):
    return getattr(importlib.import_module("diffusers"), name)


def _of_monai(name):
    if name == "Restormer":  # which it does not export
        return importlib.import_module("monai.networks.nets.restormer").Restormer
    return getattr(importlib.import_module("monai.networks.nets"), name)


def _of_torchaudio(name):
    return getattr(importlib.import_module("torchaudio.models"), name)


def _of_spandrel(name):
    module, _, kind = name.partition(".")
    package = importlib.import_module(f"spandrel.architectures.{module}.__arch")
    inside = [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    homes = [package, *map(importlib.import_module, inside)]
    found = (vars(home).get(kind) for home in homes)
    return next(cls for cls in found if isinstance(cls, type))


WIDER = {
    "diffusers": ("diffusers", _of_diffusers, DIFFUSERS),
    "monai": ("monai", _of_monai, MONAI),
    "torchaudio": ("torchaudio", _of_torchaudio, TORCHAUDIO),
    "spandrel": ("spandrel", _of_spandrel, SPANDREL),
}


def of_wider(zoo, name):
    """A small model of one of these libraries, and inputs."""
    _, find, table = WIDER[zoo]
    inputs, options, args = table[name]
    torch.manual_seed(0)
    model = find(name)(*args, **options)
    return prepared(model, inputs(), SCALE)
