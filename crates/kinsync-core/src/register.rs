//! One register of a state, and its join: the greater one wins.

use std::collections::{BTreeMap, btree_map::Entry};

use serde::{Deserialize, Serialize};

use crate::{
    field::{Field, Value},
    version::Version,
};

/// The newest value of one field, with the version of its observation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Register {
    // The derived order compares the version first, then the value. The join depends on that.
    /// Version of the observation.
    pub version: Version,
    /// Observed value.
    pub value: Value,
}

/// Joins one register. Memberships and properties are lattices of their own, and the register has the newest version among them.
pub(crate) fn with_register(
    mut fields: BTreeMap<Field, Register>,
    field: Field,
    register: Register,
) -> BTreeMap<Field, Register> {
    match fields.entry(field) {
        Entry::Vacant(vacant) => {
            vacant.insert(register);
        }
        Entry::Occupied(mut known) => join_registers(known.get_mut(), register),
    }
    fields
}

fn join_registers(known: &mut Register, other: Register) {
    if let (Value::Memberships(memberships), Value::Memberships(others)) = (&mut known.value, &other.value) {
        *memberships = std::mem::take(memberships).join(others.clone());
        if other.version > known.version {
            known.version = other.version;
        }
    } else if let (Value::Properties(properties), Value::Properties(others)) =
        (&mut known.value, &other.value)
    {
        *properties = std::mem::take(properties).join(others.clone());
        if other.version > known.version {
            known.version = other.version;
        }
    } else if other > *known {
        *known = other;
    }
}

/// Returns the greater of two values; `None` is less than any value.
pub(crate) fn greatest<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    a.max(b)
}

/// Returns the smaller of two values; `None` is greater than any value.
pub(crate) fn smallest<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (known, None) | (None, known) => known,
    }
}
