//! Errors and their stable labels, each label written once: a method that returns the label of an error, and the list of all labels.

/// Generates a method and a list of labels. An error with an inner error of its own labels names their list too.
macro_rules! labels {
    (
        $(#[$list_doc:meta])* $list:ident,
        $(#[$doc:meta])* $method:ident of $error:ident {
            $($variant:pat => $label:literal,)+
        }
        $(inner { $($inner:pat => $call:expr, $labels:expr;)+ })?
    ) => {
        impl $error {
            $(#[$list_doc])*
            pub const $list: &'static [&'static str] = {
                const LISTS: &[&[&str]] = &[&[$($label),+], $($($labels),+)?];
                &$crate::labels::joined::<{ $crate::labels::len(LISTS) }>(LISTS)
            };

            $(#[$doc])*
            pub fn $method(&self) -> &'static str {
                match self {
                    $($variant => $label,)+
                    $($($inner => $call,)+)?
                }
            }
        }
    };
}

pub(crate) use labels;

/// Returns the number of labels in all lists.
pub(crate) const fn len(lists: &[&[&str]]) -> usize {
    let (mut len, mut at) = (0, 0);
    while at < lists.len() {
        len += lists[at].len();
        at += 1;
    }
    len
}

/// Joins the lists. `LEN` is the number of their labels.
pub(crate) const fn joined<const LEN: usize>(lists: &[&[&'static str]]) -> [&'static str; LEN] {
    let mut labels = [""; LEN];
    let (mut len, mut at) = (0, 0);
    while at < lists.len() {
        let mut label = 0;
        while label < lists[at].len() {
            labels[len] = lists[at][label];
            (len, label) = (len + 1, label + 1);
        }
        at += 1;
    }
    labels
}
