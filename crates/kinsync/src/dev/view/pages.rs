//! The addresses of a run and the commands to try, as pages that fit the terminal or as one text.

use console::Style;

use super::Canvas;
use crate::dev::hints::{Addresses, Step};

/// A page of addresses and commands. `page` counts from 0 and wraps around.
pub(crate) fn page(at: &Addresses, steps: &[Step], page: usize, canvas: Canvas) -> Vec<String> {
    let pages = pages(at, steps, canvas);
    let page = page % pages.len();
    let mut lines = pages[page].clone();
    lines.resize(canvas.rows.saturating_sub(1).max(lines.len()), String::new());
    let more = if pages.len() > 1 {
        format!("page {} of {} · c  next page · ", page + 1, pages.len())
    } else {
        String::new()
    };
    lines.push(canvas.dim(format!("{more}Esc  back · q  quit")));
    lines
}

/// Distributes addresses and steps over pages; a step is never split.
pub(super) fn pages(at: &Addresses, steps: &[Step], canvas: Canvas) -> Vec<Vec<String>> {
    let blocks = std::iter::once(addresses(at, canvas))
        .chain(steps.iter().enumerate().map(|(n, s)| step(n, s, canvas)));
    let mut pages: Vec<Vec<String>> = vec![Vec::new()];
    for block in blocks {
        let page = pages.last_mut().expect("the list starts with a page");
        if page.is_empty() || page.len() + block.len() < canvas.rows {
            page.extend(block);
        } else {
            pages.push(block);
        }
    }
    pages
}

fn addresses(at: &Addresses, canvas: Canvas) -> Vec<String> {
    let line = |(name, value): (&str, &str)| format!("{} {value}", canvas.dim(format!("{name:<15}")));
    at.table().into_iter().map(line).chain([String::new()]).collect()
}

/// Lines start in the first column, so that copied text can be pasted.
fn step(n: usize, step: &Step, canvas: Canvas) -> Vec<String> {
    let title = canvas.paint(Style::new().cyan(), format!("# {}. {}", n + 1, step.title));
    std::iter::once(title).chain(step.command.lines().map(str::to_owned)).chain([String::new()]).collect()
}

/// All addresses and commands, for output without a live page.
pub(crate) fn preamble(at: &Addresses, steps: &[Step], canvas: Canvas) -> Vec<String> {
    let steps = steps.iter().enumerate().flat_map(|(n, each)| step(n, each, canvas));
    addresses(at, canvas).into_iter().chain(steps).collect()
}
