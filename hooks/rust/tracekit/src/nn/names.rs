//! Which parameter a tensor is, and what a module is called that was made from tensors alone.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, Once, PoisonError, Weak};

use candle_core::quantized::QTensor;
use candle_core::{Tensor, TensorId};

use crate::recorder::enabled;
use crate::signals::say;

/// Modules without a name that are recorded; a program that makes one in every forward call is not, beyond these.
const MOST_UNNAMED: usize = 4096;

#[derive(Default)]
struct Names {
    /// Full name of each parameter that was seen to be loaded, by the identity of its tensor.
    parameters: HashMap<TensorId, String>,
    /// The same of quantised ones, which have no identity but their address, for as long as they live.
    quantised: HashMap<usize, (Weak<QTensor>, String)>,
    /// Class of the module of a name.
    modules: HashMap<String, &'static str>,
    /// Names of heads that were given out.
    heads: HashSet<String>,
    unnamed: HashMap<&'static str, usize>,
}

static NAMES: LazyLock<Mutex<Names>> = LazyLock::new(Mutex::default);

fn lock() -> MutexGuard<'static, Names> {
    NAMES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tensor is the parameter of this name; false where that is known already.
pub(super) fn load(tensor: &Tensor, parameter: &str) -> bool {
    let mut names = lock();
    let known = names.parameters.get(&tensor.id()).is_some_and(|known| known == parameter);
    // The first name stands: a table that a head notes under its own name is still the embedding's.
    names.parameters.entry(tensor.id()).or_insert_with(|| parameter.to_string());
    !known
}

/// The parameter that a tensor is, if it was seen to be loaded.
pub(super) fn parameter(tensor: &Tensor) -> Option<String> {
    lock().parameters.get(&tensor.id()).cloned()
}

/// The quantised tensor is the parameter of this name.
pub(crate) fn load_quantised(tensor: &Arc<QTensor>, parameter: &str) {
    if enabled() {
        let own = (Arc::downgrade(tensor), parameter.to_string());
        lock().quantised.insert(Arc::as_ptr(tensor) as usize, own);
    }
}

/// The parameter that a quantised tensor is, if it was seen to be loaded.
pub(super) fn quantised_parameter(tensor: &Arc<QTensor>) -> Option<String> {
    let names = lock();
    let (own, parameter) = names.quantised.get(&(Arc::as_ptr(tensor) as usize))?;
    own.upgrade().is_some_and(|own| Arc::ptr_eq(&own, tensor)).then(|| parameter.clone())
}

/// The module that a parameter makes by itself. One that is not called `weight` belongs to a larger module, whose own
/// value is another (`self_attn.in_proj_weight`), or to none (`text_projection`): what is made of it is called after it.
/// Norms have one weight, whatever its name is.
pub(super) fn module_of<'a>(parameter: &'a str, class: &str) -> &'a str {
    match parameter.rsplit_once('.') {
        Some((module, role)) if role == "weight" || class.ends_with("Norm") => module,
        _ => parameter,
    }
}

/// Name of a function that is given its weight with each call: the weight's own. An unknown weight gets a generated name
/// once, and keeps it.
pub(super) fn of_function(class: &'static str, weight: &Tensor) -> String {
    if !enabled() {
        return String::new();
    }
    let mut names = lock();
    if let Some(known) = names.parameters.get(&weight.id()) {
        return module_of(known, class).to_string();
    }
    let name = next_unnamed(&mut names, class);
    if !name.is_empty() {
        names.parameters.insert(weight.id(), name.clone());
    }
    name
}

/// A module of this name and class is there; false where one of the name was.
pub(super) fn claim(name: &str, class: &'static str) -> bool {
    lock().modules.insert(name.to_string(), class).is_none()
}

/// Name of a module made from tensors, and whether it is a generated one.
pub(super) fn of_module(class: &'static str, weight: &Tensor) -> (String, bool) {
    let mut names = lock();
    if let Some(parameter) = names.parameters.get(&weight.id()) {
        let module = module_of(parameter, class).to_string();
        match names.modules.get(&module) {
            None => return (module, false),
            Some(&"Embedding") if class == "Linear" => {
                let head = head_of(&module);
                if names.heads.insert(head.clone()) {
                    return (head, false);
                }
            }
            Some(_) => {}
        }
    }
    (next_unnamed(&mut names, class), true)
}

/// The next generated name of a class; empty, which is not recorded, where there are too many.
pub(super) fn unnamed(class: &'static str) -> String {
    next_unnamed(&mut lock(), class)
}

fn next_unnamed(names: &mut Names, class: &'static str) -> String {
    let count = names.unnamed.entry(class).or_default();
    if *count == MOST_UNNAMED {
        return String::new();
    }
    *count += 1;
    let name = format!("unnamed.{}.{}", class.to_lowercase(), *count - 1);
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        say(&format!(
            "a {class} is made from a tensor that is no known parameter: it is recorded as `{name}`, and others \
             likewise; get its weight from tracekit::nn::watched(vb)"
        ));
    });
    name
}

/// transformers' name of the head that shares the table of this embedding: `model.embed_tokens` has `lm_head`,
/// `language_model.model.embed_tokens` has `language_model.lm_head`.
fn head_of(embedding: &str) -> String {
    let parts: Vec<&str> = embedding.split('.').collect();
    let before = parts.iter().rposition(|&part| part == "model").map_or(&parts[..0], |at| &parts[..at]);
    [before, &["lm_head"]].concat().join(".")
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn a_head_is_called_as_transformers_calls_it() {
        for (embedding, head) in [
            ("model.embed_tokens", "lm_head"),
            ("transformer.wte", "lm_head"),
            ("shared", "lm_head"),
            ("language_model.model.embed_tokens", "language_model.lm_head"),
        ] {
            assert_eq!(head_of(embedding), head);
        }
    }

    #[test]
    fn a_module_from_tensors_is_named_by_its_weight() {
        let weight = || Tensor::zeros((2, 2), DType::F32, &Device::Cpu).expect("a tensor");
        let [table, expert, stray, fused, norm, alone] = [(); 6].map(|()| weight());
        assert!(load(&table, "names.model.embed.weight") && !load(&table, "names.model.embed.weight"));
        claim("names.model.embed", "Embedding");
        load(&expert, "names.experts.0.w1.weight");
        load(&fused, "names.attn.in_proj_weight");
        load(&norm, "names.norm1.alpha");
        load(&alone, "names_projection");
        assert_eq!(of_module("Linear", &fused), ("names.attn.in_proj_weight".into(), false));
        assert_eq!(of_module("RMSNorm", &norm), ("names.norm1".into(), false));
        assert_eq!(of_module("Linear", &alone), ("names_projection".into(), false));
        assert_eq!(of_module("Linear", &table), ("names.lm_head".into(), false));
        assert_eq!(of_module("Linear", &expert), ("names.experts.0.w1".into(), false));
        let (name, is_generated) = of_module("Linear", &stray);
        assert!(name.starts_with("unnamed.linear.") && is_generated);
        let (again, is_generated) = of_module("Linear", &table);
        assert!(again.starts_with("unnamed.linear.") && again != name && is_generated);
    }
}
