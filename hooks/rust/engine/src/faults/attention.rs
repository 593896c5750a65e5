//! Seam: the attention core: its scale, its mask, its heads, its precision.

use candle_core::{bail, DType, Device, Result, Tensor, D};
use tracekit::nn::Linear;

use super::words::Words;
use super::{here, Clock, Faults, Kind as Any, Row, Run};
use crate::config::Config;
use crate::model::attention::Attention;
use crate::model::attention_core::{by_kv_head, masked, side_by_side, Attend, Core};
use crate::model::mask::{mask, Mask, Window};
use crate::model::projections::{Apart, Project};

pub const TABLE: &[Row] = &[
    ("attention-scale[:FACTOR[:LAYER]]", "Scores are FACTOR, 1.01, times too large"),
    ("softcap[:VALUE[:LAYER]]", "Scores s become VALUE * tanh(s / VALUE); 20"),
    ("mask-future[:LAYER]", "In the prefill each token sees the one behind it too"),
    ("mask-past[:LAYER]", "No token but the first sees itself"),
    ("mask-decode[:N[:LAYER]]", "Each decoded token sees the first N, 1, positions alone"),
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
    MaskDecode { keys: usize },
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
        "mask-decode" => What::MaskDecode { keys: words.count(1).filter(|&keys| keys > 0)? },
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
            What::MaskFuture if run.prefill_chunk < 2 => Some("the prefill has 1 position at a time".into()),
            What::MaskPast if positions < 2 => Some("the run has 1 position".into()),
            What::MaskDecode { .. } if run.limit < 2 => Some("a run of 1 new token decodes none".into()),
            What::MaskDecode { keys } if keys >= positions => Some(format!("the run has {positions} positions")),
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

    pub(super) fn plant_attention(&self, index: usize, attention: &mut Attention, config: &Config) -> Result<()> {
        let window = self.window(index, &config.windows);
        if window != config.windows[index] {
            attention.mask = Box::new(Window(window));
        }
        let is_mask =
            |what| matches!(what, What::MaskFuture | What::MaskPast | What::MaskDecode { .. } | What::Window { .. });
        if let Some(what) = self.find_attention(index, |what| is_mask(what).then_some(what)) {
            attention.mask = Box::new(FaultyMask { plain: Window(window), what, clock: self.clock.clone() });
        }
        let scale = config.attention_scale();
        if let Some(core) = self.other_core(index, scale) {
            attention.core = Box::new(core);
        }
        if let Some((maps_kv_heads, swaps_heads)) = self.other_heads(index, config)? {
            let inner = std::mem::replace(&mut attention.core, Box::new(Core { scale }));
            attention.core = Box::new(FaultyHeads { inner, maps_kv_heads, swaps_heads });
        }
        let swaps = self.swaps(index, attention.qkv.layers())?;
        if !swaps.is_empty() {
            attention.qkv = swapped(attention.qkv.layers(), swaps);
        }
        Ok(())
    }

    /// The window of a layer, of those of all layers.
    fn window(&self, index: usize, windows: &[Option<usize>]) -> Option<usize> {
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

    /// The core of a layer, where its arithmetic is another than the model's.
    fn other_core(&self, index: usize, scale: f64) -> Option<FaultyCore> {
        let factor = self.find_attention(index, |what| match what {
            What::Scale { factor } => Some(factor),
            _ => None,
        });
        let softcap = self.find_attention(index, |what| match what {
            What::Softcap { value } => Some(value),
            _ => None,
        });
        let products_in_f16 = self.has_attention(index, What::ScoresF16);
        let softmax_in_f16 = self.has_attention(index, What::SoftmaxF16);
        let scale = scale * factor.unwrap_or(1.0);
        let is_other = factor.is_some() || softcap.is_some() || products_in_f16 || softmax_in_f16;
        is_other.then_some(FaultyCore { scale, softcap, products_in_f16, softmax_in_f16 })
    }

    /// Whether query heads read other KV heads, and whether heads are swapped; `None`: neither.
    fn other_heads(&self, index: usize, config: &Config) -> Result<Option<(bool, bool)>> {
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let maps_kv_heads = self.has_attention(index, What::KvHeadMap);
        if maps_kv_heads && (kv_heads == 1 || kv_heads == heads) {
            bail!("--fault kv-head-map: {heads} heads read {kv_heads} KV heads alike either way");
        }
        let swaps_heads = self.has_attention(index, What::SwapHeads);
        if swaps_heads && heads < 2 {
            bail!("--fault swap-heads: there is one head");
        }
        Ok((maps_kv_heads || swaps_heads).then_some((maps_kv_heads, swaps_heads)))
    }

    /// Pairs of projections that change places.
    fn swaps(&self, index: usize, qkv: &[Linear]) -> Result<Vec<(usize, usize)>> {
        let mut swaps = Vec::new();
        if self.has_attention(index, What::SwapQk) {
            let (q, k) = (qkv[0].weight().dim(0)?, qkv[1].weight().dim(0)?);
            if q != k {
                bail!("--fault swap-qk: queries of width {q} cannot be keys of width {k}");
            }
            swaps.push((0, 1));
        }
        if self.has_attention(index, What::SwapKv) {
            swaps.push((1, 2));
        }
        Ok(swaps)
    }
}

struct FaultyMask {
    plain: Window,
    what: What,
    clock: Clock,
}

impl Mask for FaultyMask {
    fn mask(&self, cached: usize, rows: usize) -> Result<Option<Tensor>> {
        match self.what {
            What::MaskFuture if rows > 1 => mask(cached, rows, |query, key| key <= query + 1).map(Some),
            // The first has nothing else to see.
            What::MaskPast => mask(cached, rows, |query, key| key < query.max(1)).map(Some),
            What::MaskDecode { keys } if self.clock.step() > 0 => mask(cached, rows, |_, key| key < keys).map(Some),
            What::Window { keys } => mask(cached, rows, |query, key| key <= query && query < key + keys).map(Some),
            _ => self.plain.mask(cached, rows),
        }
    }
}

/// The model's core with other arithmetic.
struct FaultyCore {
    scale: f64,
    softcap: Option<f64>,
    products_in_f16: bool,
    softmax_in_f16: bool,
}

impl Attend for FaultyCore {
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let mut products = by_kv_head(q, k)?.matmul(&k.transpose(2, 3)?)?;
        if self.products_in_f16 {
            products = products.to_dtype(DType::F16)?;
        }
        let mut scores = (products.to_dtype(DType::F32)? * self.scale)?;
        if let Some(value) = self.softcap {
            scores = ((scores / value)?.tanh()? * value)?;
        }
        let softmax_dtype = if self.softmax_in_f16 { DType::F16 } else { DType::F32 };
        let scores = masked(scores, mask)?.to_dtype(softmax_dtype)?;
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
        side_by_side(&weights.matmul(v)?, q)
    }
}

/// Heads that are mistaken for others.
struct FaultyHeads {
    inner: Box<dyn Attend>,
    maps_kv_heads: bool,
    swaps_heads: bool,
}

impl Attend for FaultyHeads {
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (_, heads, rows, head_dim) = q.dims4()?;
        let out = if self.maps_kv_heads {
            let kv_heads = k.dim(1)?;
            let map: Vec<u32> = (0..heads).map(|head| (head % kv_heads) as u32).collect();
            let map = Tensor::new(map, &Device::Cpu)?;
            self.inner.attend(q, &k.index_select(&map, 1)?, &v.index_select(&map, 1)?, mask)?
        } else {
            self.inner.attend(q, k, v, mask)?
        };
        if !self.swaps_heads {
            return Ok(out);
        }
        let order: Vec<u32> = [1, 0].into_iter().chain(2..heads as u32).collect();
        let swapped = out.reshape((1, rows, heads, head_dim))?.index_select(&Tensor::new(order, &Device::Cpu)?, 2)?;
        swapped.flatten_from(D::Minus2)
    }
}

/// Projections whose outputs change places, in pairs.
pub(super) fn swapped(layers: &[Linear], swaps: Vec<(usize, usize)>) -> Box<dyn Project> {
    Box::new(Swapped { apart: Apart(layers.to_vec()), swaps })
}

struct Swapped {
    apart: Apart,
    swaps: Vec<(usize, usize)>,
}

impl Project for Swapped {
    fn forward(&self, xs: &Tensor) -> Result<Vec<Tensor>> {
        let mut parts = self.apart.forward(xs)?;
        self.swaps.iter().for_each(|&(one, other)| parts.swap(one, other));
        Ok(parts)
    }

    fn layers(&mut self) -> &mut [Linear] {
        self.apart.layers()
    }
}
