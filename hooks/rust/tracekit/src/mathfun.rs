//! float32 log, sine and cosine as torch's AVX2 build evaluates them, bit for bit.
//!
//! Source: pytorch `aten/src/ATen/native/cpu/avx_mathfun.h`, Pommier's vectorisation of the Cephes library. The compiler
//! contracts a product and a sum into one fused multiply-add wherever it can; `mul_add` stands for that.

// The digits are the source's, more than float32 holds.
#![allow(clippy::excessive_precision)]

const LOG_POLYNOMIAL: [f32; 9] = [
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
];
const QUARTER_PI_PARTS: [f32; 3] = [-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8];
const COSINE_POLYNOMIAL: [f32; 3] = [2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2];
const SINE_POLYNOMIAL: [f32; 3] = [-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1];

/// Horner's rule, one fused step a coefficient.
fn polynomial(coefficients: &[f32], x: f32) -> f32 {
    coefficients[1..].iter().fold(coefficients[0], |y, &coefficient| y.mul_add(x, coefficient))
}

/// Natural logarithm of a positive number.
pub(crate) fn log(x: f32) -> f32 {
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let mut exponent = ((bits >> 23) as i32 - 0x7f) as f32 + 1.0;
    let mantissa = f32::from_bits((bits & 0x807f_ffff) | 0x3f00_0000); // in [0.5, 1)
    let low = mantissa < std::f32::consts::FRAC_1_SQRT_2;
    let mut x = mantissa - 1.0;
    if low {
        exponent -= 1.0;
        x += mantissa;
    }
    let square = x * x;
    let y = (polynomial(&LOG_POLYNOMIAL, x) * x).mul_add(square, exponent * -2.12194440e-4);
    let y = (-square).mul_add(0.5, y);
    exponent.mul_add(0.693359375, x + y)
}

/// Sine and cosine of a moderate angle.
pub(crate) fn sine_and_cosine(x: f32) -> (f32, f32) {
    let sign = x.to_bits() & 0x8000_0000;
    let x = x.abs();
    let octant = ((x * 1.27323954473516) as i32 + 1) & !1;
    let x = QUARTER_PI_PARTS.iter().fold(x, |x, &part| (octant as f32).mul_add(part, x));
    let sine_sign = sign ^ (((octant & 4) as u32) << 29);
    let cosine_sign = ((!(octant - 2) & 4) as u32) << 29;
    let square = x * x;
    let cosine = polynomial(&COSINE_POLYNOMIAL, square) * square;
    let cosine = cosine.mul_add(square, -(square * 0.5)) + 1.0;
    let sine = (polynomial(&SINE_POLYNOMIAL, square) * square).mul_add(x, x);
    let (sine, cosine) = if octant & 2 == 0 { (sine, cosine) } else { (cosine, sine) };
    (f32::from_bits(sine.to_bits() ^ sine_sign), f32::from_bits(cosine.to_bits() ^ cosine_sign))
}
