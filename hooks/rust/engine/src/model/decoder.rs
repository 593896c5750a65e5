//! The decoder layers of Llama and Qwen2: hidden states in, hidden states after the final norm out.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::attention::Attention;
use super::mlp::Mlp;
use super::norm::Norm;
use crate::config::Config;

/// What a decoder is a stack of.
pub trait Block {
    /// Hidden states [1, rows, width] of the positions after the `cached` ones; gives the same shape.
    fn forward(&mut self, hidden: &Tensor, cached: usize) -> Result<Tensor>;

    /// Forgets all positions but the first `rows`.
    fn keep(&mut self, rows: usize) -> Result<()>;

    /// The layer, to exchange parts of it.
    fn layer(&mut self) -> &mut Layer;
}

/// The layers and the final norm.
pub struct Decoder {
    pub layers: Vec<Box<dyn Block>>,
    pub norm: Norm,
    cached: usize,
}

impl Decoder {
    /// `root` holds `layers` and `norm`.
    pub fn load(config: &Config, root: &VarBuilder) -> Result<Self> {
        let layer = |index: usize| -> Result<Box<dyn Block>> {
            Ok(Box::new(Layer::load(config, index, &root.pp("layers").pp(index))?))
        };
        let layers = (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, norm: Norm::load(config, root.pp("norm"))?, cached: 0 })
    }

    /// Positions in the cache.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Forgets all positions but the first `rows`, which must be there.
    pub fn keep(&mut self, rows: usize) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.keep(rows))?;
        self.cached = rows;
        Ok(())
    }

    /// `hidden` [1, rows, width] comes after the positions in the cache, which grows by them.
    pub fn forward(&mut self, mut hidden: Tensor) -> Result<Tensor> {
        let rows = hidden.dim(1)?;
        for layer in &mut self.layers {
            hidden = layer.forward(&hidden, self.cached)?;
        }
        self.cached += rows;
        self.norm.forward(&hidden)
    }
}

/// Attention and MLP, each after a norm, each added to what it was given.
pub struct Layer {
    pub name: String,
    pub input_layernorm: Norm,
    pub self_attn: Attention,
    pub post_attention_layernorm: Norm,
    pub mlp: Mlp,
}

impl Layer {
    fn load(config: &Config, index: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            name: vb.prefix(),
            input_layernorm: Norm::load(config, vb.pp("input_layernorm"))?,
            self_attn: Attention::load(config, index, &vb.pp("self_attn"))?,
            post_attention_layernorm: Norm::load(config, vb.pp("post_attention_layernorm"))?,
            mlp: Mlp::load(config, &vb.pp("mlp"))?,
        })
    }
}

impl Block for Layer {
    fn forward(&mut self, hidden: &Tensor, cached: usize) -> Result<Tensor> {
        let attended = self.self_attn.forward(&self.input_layernorm.forward(hidden)?, cached)?;
        let hidden = (hidden + attended)?;
        let added = self.mlp.forward(&self.post_attention_layernorm.forward(&hidden)?)?;
        let out = (hidden + added)?;
        tracekit::tap(&self.name, &out)?;
        Ok(out)
    }

    fn keep(&mut self, rows: usize) -> Result<()> {
        self.self_attn.cache.keep(rows)
    }

    fn layer(&mut self) -> &mut Layer {
        self
    }
}
