//! Seam: the attention core: its scale, its mask, its heads, its precision.

use candle_core::{bail, DType, Device, Result, Tensor};

use super::{here, Faults, Kind as Any, Row, Run};
use crate::attention_core::mask;
use crate::faults::words::Words;

pub const TABLE: &[Row] = &[
    ("attention-scale[:FACTOR[:LAYER]]", "Scores are FACTOR, 1.01, times too large"),
    ("softcap[:VALUE[:LAYER]]", "Scores s become VALUE * tanh(s / VALUE); 20"),
    ("mask-future[:LAYER]", "In the prefill each token sees the one behind it too"),
    ("mask-past[:LAYER]", "No token but the first sees itself"),
    ("window[:N[:LAYER]]", "Each token sees itself and the N - 1 before it alone; 8"),
    ("window-off-by-one[:LAYER]", "A layer that slides sees one position more than its window"),
    ("window-ignored[:LAYER]", "A layer that slides sees all positions"),
    ("window-everywhere", "All layers slide"),
    ("window-inverted", "The layers that slide are those that should not, and the reverse"),
    ("kv-head-map[:LAYER]", "Query head h reads KV head h % KV heads in place of h / group"),
    ("swap-qk[:LAYER]", "Queries and keys are swapped; a KV head a head"),
    ("swap-kv[:LAYER]", "Keys and values are swapped"),
    ("swap-heads[:LAYER]", "The first two heads' outputs are swapped"),
    ("attention-scores-f16[:LAYER]", "Products of queries and keys are rounded to float16"),
    ("softmax-f16[:LAYER]", "The softmax is computed in float16"),
];

#[derive(Debug)]
pub struct Kind {
    what: What,
    layer: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Scale { factor: f64 },
    Softcap { value: f64 },
    MaskFuture,
    MaskPast,
    Window { keys: usize },
    WindowOneMore,
    WindowIgnored,
    WindowEverywhere,
    WindowInverted,
    KvHeadMap,
    SwapQk,
    SwapKv,
    SwapHeads,
    ScoresF16,
    SoftmaxF16,
}

pub fn parse(name: &str, words: &mut Words) -> Option<Kind> {
    let what = match name {
        "attention-scale" => What::Scale { factor: words.number(1.01)? },
        "softcap" => What::Softcap { value: words.positive(20.0)? },
        "mask-future" => What::MaskFuture,
        "mask-past" => What::MaskPast,
        "window" => What::Window { keys: words.count(8).filter(|&keys| keys > 0)? },
        "window-off-by-one" => What::WindowOneMore,
        "window-ignored" => What::WindowIgnored,
        "window-everywhere" | "window-inverted" => {
            let everywhere = name == "window-everywhere";
            let what = if everywhere { What::WindowEverywhere } else { What::WindowInverted };
            return Some(Kind { what, layer: None });
        }
        "kv-head-map" => What::KvHeadMap,
        "swap-qk" => What::SwapQk,
        "swap-kv" => What::SwapKv,
        "swap-heads" => What::SwapHeads,
        "attention-scores-f16" => What::ScoresF16,
        "softmax-f16" => What::SoftmaxF16,
        _ => return None,
    };
    Some(Kind { what, layer: words.layer()? })
}

impl Kind {
    pub fn cannot_show(&self, run: &Run) -> Option<String> {
        let positions = run.prompt + run.limit - 1;
        match self.what {
            What::MaskFuture if run.prompt < 2 => Some("the prompt has 1 token".into()),
            What::MaskPast if positions < 2 => Some("the run has 1 position".into()),
            What::Window { keys } if keys >= positions => {
                Some(format!("the run's {positions} positions fit into the window"))
            }
            What::WindowOneMore | What::WindowIgnored | What::WindowEverywhere | What::WindowInverted => {
                let short = run.windows.iter().flatten().any(|&window| window < positions);
                let full = run.windows.iter().any(Option::is_none);
                let wanted = short && (full || self.what != What::WindowEverywhere);
                (!wanted).then(|| "wants a model of which some layers slide, on windows shorter than the run".into())
            }
            _ => None,
        }
    }
}

impl Faults {
    fn find_attention<T>(&self, index: usize, pick: impl Fn(What) -> Option<T>) -> Option<T> {
        self.find(|kind| match kind {
            Any::Attention(Kind { what, layer }) if here(*layer, index) => pick(*what),
            _ => None,
        })
    }

    fn has_attention(&self, index: usize, what: What) -> bool {
        self.find_attention(index, |found| (found == what).then_some(())).is_some()
    }

    /// The window of a layer, of those of all layers.
    pub fn window(&self, index: usize, windows: &[Option<usize>]) -> Option<usize> {
        let any = windows.iter().flatten().next().copied();
        let own = windows[index];
        self.find_attention(index, |what| match what {
            What::WindowOneMore => own.map(|window| Some(window + 1)),
            What::WindowIgnored => own.map(|_| None),
            What::WindowEverywhere => Some(any),
            What::WindowInverted => Some(if own.is_some() { None } else { any }),
            _ => None,
        })
        .unwrap_or(own)
    }

    /// A layer's softmax scale.
    pub fn attention_scale(&self, index: usize, scale: f64) -> f64 {
        let factor = self.find_attention(index, |what| match what {
            What::Scale { factor } => Some(factor),
            _ => None,
        });
        scale * factor.unwrap_or(1.0)
    }

    /// Queries, keys and values as they are projected, each [1, rows, width].
    pub fn qkv(&self, index: usize, mut parts: Vec<Tensor>) -> Result<Vec<Tensor>> {
        if self.has_attention(index, What::SwapQk) {
            if parts[0].dims() != parts[1].dims() {
                let (q, k) = (parts[0].dim(2)?, parts[1].dim(2)?);
                bail!("--fault swap-qk: queries of width {q} cannot be keys of width {k}");
            }
            parts.swap(0, 1);
        }
        if self.has_attention(index, What::SwapKv) {
            parts.swap(1, 2);
        }
        Ok(parts)
    }

    /// Keys and values as the query heads read them, [1, KV heads, positions, head_dim].
    pub fn kv_heads(&self, index: usize, heads: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        if !self.has_attention(index, What::KvHeadMap) {
            return Ok((k.clone(), v.clone()));
        }
        let kv_heads = k.dim(1)?;
        if kv_heads == 1 || kv_heads == heads {
            bail!("--fault kv-head-map: {heads} heads read {kv_heads} KV heads alike either way");
        }
        let map: Vec<u32> = (0..heads).map(|head| (head % kv_heads) as u32).collect();
        let map = Tensor::new(map, &Device::Cpu)?;
        Ok((k.index_select(&map, 1)?, v.index_select(&map, 1)?))
    }

    /// Products of queries and keys, before they are scaled.
    pub fn products(&self, index: usize, products: Tensor) -> Result<Tensor> {
        match self.has_attention(index, What::ScoresF16) {
            true => products.to_dtype(DType::F16),
            false => Ok(products),
        }
    }

    /// Scaled products, before they are masked.
    pub fn scores(&self, index: usize, scores: Tensor) -> Result<Tensor> {
        let cap = self.find_attention(index, |what| match what {
            What::Softcap { value } => Some(value),
            _ => None,
        });
        match cap {
            Some(value) => (scores / value)?.tanh()? * value,
            None => Ok(scores),
        }
    }

    /// The mask of this call, [rows, positions]; none where every row sees all.
    pub fn mask(&self, index: usize, cached: usize, rows: usize, plain: Option<Tensor>) -> Result<Option<Tensor>> {
        let shape = self.find_attention(index, |what| match what {
            What::Window { .. } | What::MaskPast => Some(what),
            What::MaskFuture if rows > 1 => Some(what),
            _ => None,
        });
        match shape {
            Some(What::MaskFuture) => mask(cached, rows, |query, key| key <= query + 1).map(Some),
            // The first has nothing else to see.
            Some(What::MaskPast) => mask(cached, rows, |query, key| key < query.max(1)).map(Some),
            Some(What::Window { keys }) => {
                mask(cached, rows, |query, key| key <= query && query < key + keys).map(Some)
            }
            _ => Ok(plain),
        }
    }

    /// The dtype of a layer's softmax.
    pub fn softmax_dtype(&self, index: usize) -> DType {
        if self.has_attention(index, What::SoftmaxF16) {
            DType::F16
        } else {
            DType::F32
        }
    }

    /// The heads' outputs, [1, heads, rows, head_dim].
    pub fn heads(&self, index: usize, out: Tensor) -> Result<Tensor> {
        if !self.has_attention(index, What::SwapHeads) {
            return Ok(out);
        }
        let heads = out.dim(1)?;
        if heads < 2 {
            bail!("--fault swap-heads: there is one head");
        }
        let order: Vec<u32> = [1, 0].into_iter().chain(2..heads as u32).collect();
        out.index_select(&Tensor::new(order, &Device::Cpu)?, 1)
    }
}
