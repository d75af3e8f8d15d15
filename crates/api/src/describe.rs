//! What the structures look like in JSON, known to the program itself: names of fields for bodies whose sender writes them
//! in other letters (Go takes `detachKeys` for `DetachKeys`), and for the description of the API that a daemon gives.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::Value;

use crate::json::{Empty, Map};

/// A type that has a shape in JSON.
pub trait Describe {
    /// Its shape.
    fn describe() -> Shape;
}

/// The shape of a value. What is inside of another is described when it is asked for, so that shapes may refer to themselves.
#[derive(Debug, Clone, Copy)]
pub enum Shape {
    /// Anything.
    Any,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// A string.
    Text,
    /// A list of one kind.
    List(fn() -> Shape),
    /// An object with any names and one kind of value.
    Map(fn() -> Shape),
    /// A value or `null`.
    Nullable(fn() -> Shape),
    /// A structure.
    Object(&'static Object),
}

/// A structure.
#[derive(Debug)]
pub struct Object {
    name: &'static str,
    fields: &'static [Field],
    names: OnceLock<HashMap<String, Named>>,
}

/// A field's name as it is written, and its shape.
type Named = (Cow<'static, str>, fn() -> Shape);

/// A field of a structure.
#[derive(Debug)]
pub struct Field {
    /// Its name in Rust.
    pub rust: &'static str,
    /// Its attributes, with its comment.
    pub attributes: &'static str,
    /// Its shape.
    pub shape: fn() -> Shape,
    /// Whether its own fields stand in its place.
    pub flat: bool,
}

impl Field {
    /// Its name in JSON.
    pub fn name(&self) -> Cow<'static, str> {
        if let Some((_, rest)) = self.attributes.split_once("rename = \"")
            && let Some((name, _)) = rest.split_once('"')
        {
            return Cow::Borrowed(name);
        }
        let mut name = String::with_capacity(self.rust.len());
        for word in self.rust.split('_') {
            let mut letters = word.chars();
            name.extend(letters.next().map(|first| first.to_ascii_uppercase()));
            name.push_str(letters.as_str());
        }
        Cow::Owned(name)
    }

    /// Its comment.
    pub fn comment(&self) -> String {
        let lines = self.attributes.lines().filter_map(|line| {
            let text = line.strip_prefix("doc = ")?;
            let start = text.find('"')? + 1;
            Some(text.get(start..text.rfind('"')?)?.trim())
        });
        lines.collect::<Vec<_>>().join(" ")
    }
}

impl Object {
    /// A structure with these fields.
    pub const fn new(name: &'static str, fields: &'static [Field]) -> Self {
        Self {
            name,
            fields,
            names: OnceLock::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// All fields, with those of embedded structures in their place.
    pub fn fields(&self) -> Vec<&'static Field> {
        let mut all = Vec::new();
        for field in self.fields {
            match (field.shape)() {
                Shape::Object(inner) if field.flat => all.extend(inner.fields()),
                _ => all.push(field),
            }
        }
        all
    }

    fn names(&self) -> &HashMap<String, Named> {
        self.names.get_or_init(|| {
            let fields = self.fields().into_iter();
            fields
                .map(|field| {
                    let name = field.name();
                    (name.to_ascii_lowercase(), (name, field.shape))
                })
                .collect()
        })
    }
}

/// Gives the fields of a value the letters they are known by.
pub fn canonical<T: Describe>(value: &mut Value) {
    fold(value, T::describe());
}

fn fold(value: &mut Value, shape: Shape) {
    match (value, shape) {
        (Value::Array(list), Shape::List(inner)) => {
            list.iter_mut().for_each(|item| fold(item, inner()));
        }
        (Value::Object(map), Shape::Map(inner)) => {
            map.values_mut().for_each(|item| fold(item, inner()));
        }
        (value, Shape::Nullable(inner)) => fold(value, inner()),
        (Value::Object(map), Shape::Object(object)) => {
            let names = object.names();
            let known = |key: &str| names.get(&key.to_ascii_lowercase());
            if map
                .keys()
                .any(|key| known(key).is_some_and(|(name, _)| name != key))
            {
                // Of several spellings the last one counts, as in Go.
                *map = std::mem::take(map)
                    .into_iter()
                    .map(|(key, item)| match known(&key) {
                        Some((name, _)) => (name.clone().into_owned(), item),
                        None => (key, item),
                    })
                    .collect();
            }
            for (key, item) in map.iter_mut() {
                if let Some((_, inner)) = known(key) {
                    fold(item, inner());
                }
            }
        }
        _ => {}
    }
}

macro_rules! plain {
    ($shape:ident: $($type:ty),*) => { $(
        impl Describe for $type {
            fn describe() -> Shape {
                Shape::$shape
            }
        }
    )* };
}
plain!(Bool: bool);
plain!(Integer: u8, u16, u32, u64, i32, i64);
plain!(Text: String);
plain!(Number: f64);
plain!(Any: Value);

impl Describe for Empty {
    fn describe() -> Shape {
        static EMPTY: Object = Object::new("Empty", &[]);
        Shape::Object(&EMPTY)
    }
}

impl<T: Describe> Describe for Vec<T> {
    fn describe() -> Shape {
        Shape::List(T::describe)
    }
}

impl<T: Describe, const N: usize> Describe for [T; N] {
    fn describe() -> Shape {
        Shape::List(T::describe)
    }
}

impl<T: Describe> Describe for Map<T> {
    fn describe() -> Shape {
        Shape::Map(T::describe)
    }
}

impl<T: Describe> Describe for Option<T> {
    fn describe() -> Shape {
        Shape::Nullable(T::describe)
    }
}

impl Describe for crate::ChangeKind {
    fn describe() -> Shape {
        Shape::Integer
    }
}

impl Describe for crate::DiskItem {
    fn describe() -> Shape {
        Shape::Any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ContainerCreateRequest, ExecCreateRequest};

    #[test]
    fn names_are_known_in_any_letters() {
        let mut value = serde_json::json!({
            "image": "i", "HOSTCONFIG": {"memory": 7, "logConfig": {"type": "none"}, "Mounts": [{"type": "bind"}]},
            "Labels": {"image": "x", "Cmd": "y"}, "cmd": ["a"], "unknown": {"cmd": 1},
            "networkingConfig": {"endpointsconfig": {"n": {"ipamConfig": {"ipv4address": "1.2.3.4"}}}},
        });
        canonical::<ContainerCreateRequest>(&mut value);
        let request: ContainerCreateRequest = serde_json::from_value(value).unwrap();
        assert_eq!(
            (request.config.image.as_str(), request.config.cmd.len()),
            ("i", 1)
        );
        assert_eq!(request.host_config.resources.memory, 7);
        assert_eq!(request.host_config.log_config.kind, "none");
        assert_eq!(request.host_config.mounts[0].kind, "bind");
        assert_eq!(request.config.labels["image"], "x");
        let end = &request.networking_config.endpoints_config["n"];
        assert_eq!(end.ipam_config.as_ref().unwrap().ipv4_address, "1.2.3.4");
    }

    #[test]
    fn fields_have_the_names_that_serde_writes() {
        fn check<T: Describe + serde::Serialize + Default>() {
            let Shape::Object(object) = T::describe() else {
                panic!("no structure")
            };
            let known: Vec<_> = object.fields().iter().map(|field| field.name()).collect();
            let written = serde_json::to_value(T::default()).unwrap();
            for key in written.as_object().unwrap().keys() {
                assert!(known.iter().any(|name| name == key), "{}: {key}", object.name());
            }
        }
        check::<ContainerCreateRequest>();
        check::<ExecCreateRequest>();
        check::<crate::ContainerInspect>();
        check::<crate::Info>();
        check::<crate::Stats>();
        check::<crate::Network>();
    }

    #[test]
    fn comments_are_read() {
        let Shape::Object(object) = crate::ImageSummary::describe() else {
            panic!("no structure")
        };
        let fields = object.fields();
        let created = fields.iter().find(|field| field.rust == "created").unwrap();
        assert_eq!(created.comment(), "Seconds since the epoch.");
    }
}
