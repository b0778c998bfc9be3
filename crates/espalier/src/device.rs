//! Where tensors live: the `--device` option.

use burn::tensor::Device;

use espalier_data::nearest::suggestion;

use crate::{Error, Result};

/// The kinds of device, and whether this program was built with them; every kind but `cpu` is a feature of the same name.
pub const DEVICES: [(&str, bool); 6] = [
    ("cpu", true),
    ("cuda", cfg!(feature = "cuda")),
    ("metal", cfg!(feature = "metal")),
    ("rocm", cfg!(feature = "rocm")),
    ("vulkan", cfg!(feature = "vulkan")),
    ("webgpu", cfg!(feature = "webgpu")),
];

/// The device that `text` names: `cpu`, or a kind with an optional number, such as `cuda:0`.
///
/// ```
/// use espalier::device::parse;
/// assert!(parse("cpu").is_ok());
/// assert!(parse("cdua:0").unwrap_err().to_string().contains("did you mean `cuda`?"));
/// ```
///
/// # Errors
/// When there is no such kind, or this program was built without it.
pub fn parse(text: &str) -> Result<Device> {
    let usage = |reason: String| Error::Usage(format!("`--device {text}`: {reason}"));
    let (kind, number) = match text.split_once(':') {
        Some((kind, number)) => (kind, Some(number)),
        None => (text, None),
    };
    let index = match number.map(str::parse::<usize>) {
        None => None,
        Some(Ok(index)) if kind != "cpu" => Some(index),
        Some(_) => {
            return Err(usage(
                "expected `cpu`, or a kind and a number, such as `cuda:0`".into(),
            ));
        }
    };
    let names = DEVICES.map(|(name, _)| name);
    match DEVICES.iter().find(|(name, _)| *name == kind) {
        Some((_, true)) => Ok(open(kind, index)),
        Some((_, false)) => Err(usage(format!(
            "this program was built without the feature `{kind}`; build it with `cargo build --release --features {kind}`"
        ))),
        None => {
            let hint = suggestion(kind, names);
            Err(usage(format!(
                "no such device{hint}; there are: {}",
                names.join(", ")
            )))
        }
    }
}

/// A device of a kind that was built in.
fn open(kind: &str, index: Option<usize>) -> Device {
    #[cfg(any(feature = "metal", feature = "vulkan", feature = "webgpu"))]
    let adapter = index.map_or(
        burn::tensor::DeviceKind::DefaultDevice,
        burn::tensor::DeviceKind::DiscreteGpu,
    );
    #[cfg(feature = "cuda")]
    if kind == "cuda" {
        return Device::cuda(index.unwrap_or(0));
    }
    #[cfg(feature = "rocm")]
    if kind == "rocm" {
        return Device::rocm(index.unwrap_or(0));
    }
    #[cfg(feature = "metal")]
    if kind == "metal" {
        return Device::metal(adapter);
    }
    #[cfg(feature = "vulkan")]
    if kind == "vulkan" {
        return Device::vulkan(adapter);
    }
    #[cfg(feature = "webgpu")]
    if kind == "webgpu" {
        return Device::webgpu(adapter);
    }
    let _ = (kind, index);
    Device::flex()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_cpu_is_always_there() {
        assert_eq!(parse("cpu").unwrap(), Device::flex());
        assert!(message("cpu:1").contains("expected `cpu`"));
    }

    #[test]
    fn wrong_devices_are_explained() {
        assert!(message("vulkam").contains("did you mean `vulkan`?"));
        assert!(message("cuda:x").contains("such as `cuda:0`"));
        for (name, _) in DEVICES.iter().filter(|(_, built)| !built) {
            assert!(message(name).contains(&format!("--features {name}")));
        }
    }
}
