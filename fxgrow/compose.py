"""Composite functions of torch written out, so that the sizes inside can grow."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def attention_forward(
    query: Any,
    key: Any,
    value: Any,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    sizes: Any = 3,
    scale: float | None = None,
) -> tuple[Any, Any]:
    """Multi-head attention of ``(length, batch, width)``, heads × head width free.

    Same mathematics as ``torch.nn.functional.multi_head_attention_forward``, but the
    inner width need not be the embedding's. ``sizes``: rows of queries, keys and values that
    are packed in one weight; ``scale``: of the scores, where it is not that of the head width.

    Raises
    ------
    NotImplementedError
        For options that are not written out; the caller then keeps the original call.
    """
    if static_k is not None or static_v is not None:
        raise NotImplementedError("keys and values that are given")
    if use_separate_proj_weight:
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        weights = _packed(in_proj_weight, sizes)
    biases = (None, None, None) if in_proj_bias is None else _packed(in_proj_bias, sizes)
    extra = (bias_k is not None) + add_zero_attn
    q, k, v = (
        _in_heads(F.linear(x, w, b), token, num_heads)
        for x, w, b, token in zip(
            (query, key, value), weights, biases, (None, bias_k, bias_v), strict=True
        )
    )
    if add_zero_attn:
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    mask = None
    if attn_mask is not None or key_padding_mask is not None or is_causal:
        mask = _merged_mask(query, attn_mask, key_padding_mask, num_heads, is_causal)
        mask = F.pad(mask, (0, extra)) if extra else mask
    dropout = dropout_p if dropout_p and training else 0.0
    if not need_weights:
        given: dict[str, Any] = {} if scale is None else {"scale": scale}
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, **given)
        weights_out = None
    else:
        factor = q.size(-1) ** -0.5 if scale is None else scale
        scores = torch.matmul(q * factor, k.transpose(-2, -1))
        scores = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        mixed = torch.matmul(F.dropout(scores, dropout) if dropout else scores, v)
        weights_out = scores.mean(dim=1) if average_attn_weights else scores
    return F.linear(
        mixed.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias
    ), weights_out


def _packed(weight: Any, sizes: Any) -> Any:
    """Split what holds queries, keys and values, in equal parts or in parts of these sizes."""
    return weight.chunk(3) if sizes == 3 else weight.split(sizes)


def _in_heads(x: Any, token: Any, heads: int) -> Any:
    """``(length, batch, width)``, one learnt token behind it, as ``(batch, heads, length, -1)``."""
    if token is not None:
        x = torch.cat([x, token.expand(-1, x.size(1), -1)])
    return x.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)


def _merged_mask(query: Any, attn_mask: Any, padding: Any, heads: int, is_causal: bool) -> Any:
    if attn_mask is None and is_causal:
        raise NotImplementedError("a causal hint without a mask")
    mask = None
    if attn_mask is not None:
        mask = _additive(query, attn_mask)
        if mask.dim() == 3:
            mask = mask.unflatten(0, (-1, heads))
    if padding is not None:
        own = _additive(query, padding)[:, None, None, :]
        mask = own if mask is None else mask + own
    return mask


def _additive(query: Any, mask: Any) -> Any:
    """Turn a boolean mask into one that is added to the scores; keep others."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, float("-inf"))


def multihead_forward(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """Forward of ``torch.nn.MultiheadAttention`` without its checks and fast paths.

    Raises
    ------
    NotImplementedError
        For inputs without a batch dimension.
    """
    if query.dim() != 3:
        raise NotImplementedError("attention without a batch dimension")
    flip = module.batch_first
    query, key, value = (x.transpose(0, 1) if flip else x for x in (query, key, value))
    separate = module.in_proj_weight is None
    mixed, weights = attention_forward(
        query,
        key,
        value,
        module.embed_dim,
        module.num_heads,
        None if separate else module.in_proj_weight,
        module.in_proj_bias,
        module.bias_k,
        module.bias_v,
        module.add_zero_attn,
        module.dropout,
        module.out_proj.weight,
        module.out_proj.bias,
        training=module.training,
        key_padding_mask=key_padding_mask,
        need_weights=need_weights,
        attn_mask=attn_mask,
        use_separate_proj_weight=separate,
        q_proj_weight=module.q_proj_weight if separate else None,
        k_proj_weight=module.k_proj_weight if separate else None,
        v_proj_weight=module.v_proj_weight if separate else None,
        average_attn_weights=average_attn_weights,
        is_causal=is_causal,
        sizes=getattr(module, "sizes", 3),
        scale=getattr(module, "scale", None),
    )
    return (mixed.transpose(0, 1) if flip else mixed), weights


class WideMultiheadAttention(torch.nn.MultiheadAttention):
    """``nn.MultiheadAttention`` whose heads x head size need not be the embedding's width.

    Same parameters and arguments; what :func:`fxgrow.widen` makes of one that has grown, where
    it returns the user's own class. Keys, values and outputs may have widths of their own.

    Attributes
    ----------
    sizes : list of int
        Rows of queries, keys and values among those of the projections.
    scale : float
        Of the scores: that of the size that heads had at first.
    """

    sizes: list[int]
    scale: float

    def forward(
        self, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Attend; see ``nn.MultiheadAttention.forward``."""
        if query.dim() == 3:
            return multihead_forward(self, query, key, value, *args, **kwargs)
        axis = 0 if self.batch_first else 1
        mixed, weights = multihead_forward(
            self, *(x.unsqueeze(axis) for x in (query, key, value)), *args, **kwargs
        )
        return mixed.squeeze(axis), None if weights is None else weights.squeeze(0)


DECOMPOSITIONS: dict[Any, Any] = {F.multi_head_attention_forward: attention_forward}
MODULE_DECOMPOSITIONS: dict[type, Any] = {
    torch.nn.MultiheadAttention: multihead_forward,
    WideMultiheadAttention: multihead_forward,
}
