//! How Go's `encoding/json` behaves, in serde's terms.
//!
//! Docker's clients and daemon are Go programs. On input a `null` leaves any field at its zero value and
//! unknown fields are ignored; on output maps are sorted by key, `omitempty` drops zero values, and nil
//! slices and maps are `null`. The [`model!`] macro gives every structure these input rules; the output
//! rules are named field by field with the functions below.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A JSON object with string keys, sorted on output as Go sorts its maps.
pub type Map<V> = BTreeMap<String, V>;

/// Go's `struct{}` as a map value: a set member, written `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Empty {}

/// Reads a value, taking `null` for the zero value.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Go's `omitempty`: whether a value is the zero value.
pub(crate) fn empty<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Something with a length, which Go may leave nil.
pub(crate) trait Nilable {
    fn is_nil(&self) -> bool;
}

impl<T> Nilable for Vec<T> {
    fn is_nil(&self) -> bool {
        self.is_empty()
    }
}

impl<V> Nilable for Map<V> {
    fn is_nil(&self) -> bool {
        self.is_empty()
    }
}

/// Writes an empty list or map as `null`, as Go writes a nil one.
pub(crate) fn null_if_empty<S, T>(value: &T, serializer: S) -> Result<S::Ok, S::Error>
where
    S: Serializer,
    T: Nilable + Serialize,
{
    if value.is_nil() {
        serializer.serialize_none()
    } else {
        value.serialize(serializer)
    }
}

/// Docker's `strslice`: a list of strings, or one string standing for a list of one.
#[derive(Deserialize)]
#[serde(untagged)]
enum StringOrList {
    One(String),
    List(Vec<String>),
}

impl From<StringOrList> for Vec<String> {
    fn from(value: StringOrList) -> Self {
        match value {
            StringOrList::One(one) => vec![one],
            StringOrList::List(list) => list,
        }
    }
}

/// Reads a `strslice`; `null` is the empty list.
pub(crate) fn strings<'de, D>(deserializer: D) -> Result<Vec<String>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(Option::<StringOrList>::deserialize(deserializer)?
        .map(Vec::from)
        .unwrap_or_default())
}

/// Reads a `strslice`; `null` is `None`, which Docker tells apart from the empty list.
pub(crate) fn optional_strings<'de, D>(deserializer: D) -> Result<Option<Vec<String>>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(Option::<StringOrList>::deserialize(deserializer)?.map(Vec::from))
}

/// Declares structures of the API: `PascalCase` names, every field optional on input and `null` read as its
/// zero value. Fields after `flatten` are Go's embedded structures; fields after `raw` bring their own
/// `deserialize_with`.
macro_rules! model {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$fmeta:meta])* pub $field:ident : $type:ty ),* $(,)?
        }
        $( raw { $( $(#[$rmeta:meta])* pub $rfield:ident : $rtype:ty ),* $(,)? } )?
        $( flatten { $( $(#[$gmeta:meta])* pub $gfield:ident : $gtype:ty ),* $(,)? } )?
    )*) => { $(
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        pub struct $name {
            $( $( $(#[$gmeta])* #[serde(flatten)] pub $gfield : $gtype, )* )?
            $( $(#[$fmeta])* #[serde(deserialize_with = "crate::json::or_default")] pub $field : $type, )*
            $( $( $(#[$rmeta])* pub $rfield : $rtype, )* )?
        }

        impl crate::describe::Describe for $name {
            fn describe() -> crate::describe::Shape {
                static OBJECT: crate::describe::Object = crate::describe::Object::new(stringify!($name), &[
                    $( $( crate::describe::Field {
                        rust: stringify!($gfield),
                        attributes: "",
                        shape: <$gtype as crate::describe::Describe>::describe,
                        flat: true,
                    }, )* )?
                    $( crate::describe::Field {
                        rust: stringify!($field),
                        attributes: concat!($(stringify!($fmeta), "\n"),*),
                        shape: <$type as crate::describe::Describe>::describe,
                        flat: false,
                    }, )*
                    $( $( crate::describe::Field {
                        rust: stringify!($rfield),
                        attributes: concat!($(stringify!($rmeta), "\n"),*),
                        shape: <$rtype as crate::describe::Describe>::describe,
                        flat: false,
                    }, )* )?
                ]);
                crate::describe::Shape::Object(&OBJECT)
            }
        }
    )* };
}
pub(crate) use model;
