//! One byte after another: what every other kernel must equal, and what does their tails.

use super::Columns;
use crate::gf::PRODUCTS;

/// Adds the bytes from `start` of all sources, each times its coefficient, into the outputs.
pub(super) fn run(columns: &Columns<'_>, outputs: &mut [&mut [u8]], start: usize) {
    for (row, output) in outputs.iter_mut().enumerate() {
        let output = &mut output[start..];
        if !columns.accumulate {
            output.fill(0);
        }
        for (source, coefficients) in columns.sources.iter().zip(columns.coefficients) {
            let source = &source[start..];
            if coefficients[row] == 1 {
                output.iter_mut().zip(source).for_each(|(to, from)| *to ^= from);
            } else {
                let products = &PRODUCTS[usize::from(coefficients[row])];
                output
                    .iter_mut()
                    .zip(source)
                    .for_each(|(to, from)| *to ^= products[usize::from(*from)]);
            }
        }
    }
}
