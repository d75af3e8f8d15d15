//! The form of messages on the wire.
//!
//! Numbers are little-endian, `bool` is 0 or 1, `Option` a `bool` and the value, a list its `u32` count and the elements, text
//! a list of bytes that are UTF-8, a structure its fields in order, an `enum` the variant's number (one byte) and its fields.

use alloc::string::String;
use alloc::vec::Vec;

/// A message, or a part of one, in its form on the wire.
pub trait Wire: Sized {
    /// Appends it.
    fn encode(&self, out: &mut Vec<u8>);
    /// Takes it from the front of `from`; none when what is there is not one.
    fn decode(from: &mut &[u8]) -> Option<Self>;
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Wire for $number {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn decode(from: &mut &[u8]) -> Option<Self> {
                let (bytes, rest) = from.split_first_chunk()?;
                *from = rest;
                Some(Self::from_le_bytes(*bytes))
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64, i32, i64);

impl Wire for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn decode(from: &mut &[u8]) -> Option<Self> {
        match u8::decode(from)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl<T: Wire> Wire for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }
    fn decode(from: &mut &[u8]) -> Option<Self> {
        Some(match bool::decode(from)? {
            true => Some(T::decode(from)?),
            false => None,
        })
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u32).encode(out);
        for value in self {
            value.encode(out);
        }
    }
    fn decode(from: &mut &[u8]) -> Option<Self> {
        // Every element takes at least a byte, and memory is taken as they come: a count alone reserves nothing.
        let count = u32::decode(from)? as usize;
        if count > from.len() {
            return None;
        }
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(T::decode(from)?);
        }
        Some(values)
    }
}

impl Wire for String {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u32).encode(out);
        out.extend_from_slice(self.as_bytes());
    }
    fn decode(from: &mut &[u8]) -> Option<Self> {
        String::from_utf8(Vec::decode(from)?).ok()
    }
}

/// Defines structures and enums with their [`Wire`] form.
macro_rules! messages {
    () => {};
    ($(#[$meta:meta])* struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* } $($rest:tt)*) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }
        impl Wire for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$field.encode(out);)*
            }
            fn decode(from: &mut &[u8]) -> Option<Self> {
                Some(Self { $($field: Wire::decode(from)?,)* })
            }
        }
        messages! { $($rest)* }
    };
    ($(#[$meta:meta])* enum $name:ident {
        $($(#[$variant_meta:meta])* $number:literal $variant:ident $(($inner:ty))? $({ $($(#[$field_meta:meta])* $field:ident: $type:ty,)* })?,)*
    } $($rest:tt)*) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(clippy::large_enum_variant, reason = "a message lives for a moment")]
        pub enum $name {
            $($(#[$variant_meta])* $variant $(($inner))? $({ $($(#[$field_meta])* $field: $type,)* })?,)*
        }
        impl Wire for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    $(messages!(@pattern $variant $(($inner) inner)? $({ $($field)* })?) => {
                        let number: u8 = $number;
                        number.encode(out);
                        $(<$inner as Wire>::encode(inner, out);)?
                        $($(<$type as Wire>::encode($field, out);)*)?
                    })*
                }
            }
            fn decode(from: &mut &[u8]) -> Option<Self> {
                Some(match u8::decode(from)? {
                    $($number => messages!(@build from $variant $(($inner))? $({ $($field)* })?),)*
                    _ => return None,
                })
            }
        }
        messages! { $($rest)* }
    };
    (@pattern $variant:ident) => { Self::$variant };
    (@pattern $variant:ident ($inner:ty) $bound:ident) => { Self::$variant($bound) };
    (@pattern $variant:ident { $($field:ident)* }) => { Self::$variant { $($field,)* } };
    (@build $from:ident $variant:ident) => { Self::$variant };
    (@build $from:ident $variant:ident ($inner:ty)) => { Self::$variant(Wire::decode($from)?) };
    (@build $from:ident $variant:ident { $($field:ident)* }) => { Self::$variant { $($field: Wire::decode($from)?,)* } };
}
