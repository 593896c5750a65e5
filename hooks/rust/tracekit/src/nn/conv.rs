//! Drop-ins for `candle_nn::conv`. Their values are stored where the last axis is that of positions.

use candle_core::{Module, Result, Tensor};
use candle_nn::{BatchNorm, VarBuilder};
pub use candle_nn::{Conv1dConfig, Conv2dConfig, ConvTranspose1dConfig, ConvTranspose2dConfig};

use super::taps::{recorded_as, register_module, register_tensors, Places};

macro_rules! convolution {
    ($name:ident, $class:literal, $config:ident, $load:ident, $load_no_bias:ident) => {
        #[doc = concat!("`candle_nn::", $class, "` that records its input and output.")]
        #[derive(Clone, Debug)]
        pub struct $name {
            name: String,
            inner: candle_nn::$name,
        }

        impl $name {
            /// A convolution from tensors at hand; [how it is named](super).
            pub fn new(weight: Tensor, bias: Option<Tensor>, config: $config) -> Self {
                let name = register_tensors($class, &[("weight", Some(&weight)), ("bias", bias.as_ref())], vec![]);
                Self { name, inner: candle_nn::$name::new(weight, bias, config) }
            }

            /// Its site name.
            pub fn name(&self) -> &str {
                &self.name
            }

            /// Padding, stride, dilation, groups.
            pub fn config(&self) -> &$config {
                self.inner.config()
            }

            /// The kernel.
            pub fn weight(&self) -> &Tensor {
                self.inner.weight()
            }

            /// `[channels]`.
            pub fn bias(&self) -> Option<&Tensor> {
                self.inner.bias()
            }
        }

        impl Module for $name {
            fn forward(&self, xs: &Tensor) -> Result<Tensor> {
                recorded_as(&self.name, xs, Places::LastAxis, |xs| self.inner.forward(xs))
            }
        }

        convolution!($name, $class, $config, $load, "with");
        convolution!($name, $class, $config, $load_no_bias, "without");
    };
    ($name:ident, $class:literal, $config:ident, $load:ident, $bias:literal) => {
        #[doc = concat!("A `", $class, "` ", $bias, " bias, loaded from `vb`.")]
        ///
        /// # Errors
        /// If a tensor is missing or has another shape.
        pub fn $load(
            in_channels: usize,
            out_channels: usize,
            kernel_size: usize,
            cfg: $config,
            vb: VarBuilder,
        ) -> Result<$name> {
            let name = vb.prefix();
            let inner = candle_nn::$load(in_channels, out_channels, kernel_size, cfg, vb)?;
            register_module(&name, $class, &[("weight", Some(inner.weight())), ("bias", inner.bias())], vec![])?;
            Ok($name { name, inner })
        }
    };
}

convolution!(Conv1d, "Conv1d", Conv1dConfig, conv1d, conv1d_no_bias);
convolution!(Conv2d, "Conv2d", Conv2dConfig, conv2d, conv2d_no_bias);
convolution!(ConvTranspose1d, "ConvTranspose1d", ConvTranspose1dConfig, conv_transpose1d, conv_transpose1d_no_bias);
convolution!(ConvTranspose2d, "ConvTranspose2d", ConvTranspose2dConfig, conv_transpose2d, conv_transpose2d_no_bias);

impl Conv2d {
    /// The convolution and the batch norm after it, as one convolution; it keeps this one's name.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn absorb_bn(&self, bn: &super::BatchNorm) -> Result<Self> {
        let bn: &BatchNorm = bn.inner();
        Ok(Self { name: self.name.clone(), inner: self.inner.absorb_bn(bn)? })
    }
}
