//! GF(2^8): bytes as polynomials over GF(2) modulo x^8 + x^4 + x^3 + x^2 + 1 (0x11d).
//!
//! Addition is XOR. 2 generates all 255 other elements, so products are sums of logarithms.
//! All tables are built by the compiler.
//! # Source
//! G-3.

/// The field's polynomial; its ninth bit is what the carry is reduced by.
const POLYNOMIAL: u16 = 0x11d;

/// `EXP[i]` is 2^i, twice around so that the sum of two logarithms needs no reduction.
const EXP: [u8; 510] = {
    let mut table = [0; 510];
    let mut value: u16 = 1;
    let mut power = 0;
    while power < 255 {
        table[power] = value as u8;
        table[power + 255] = value as u8;
        value <<= 1;
        if value & 0x100 != 0 {
            value ^= POLYNOMIAL;
        }
        power += 1;
    }
    table
};

/// `LOG[v]` is the i with 2^i = v; `LOG[0]` means nothing.
const LOG: [u8; 256] = {
    let mut table = [0; 256];
    let mut power = 0;
    while power < 255 {
        table[EXP[power] as usize] = power as u8;
        power += 1;
    }
    table
};

/// The product of `a` and `b`.
pub(crate) const fn mul(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    EXP[LOG[a as usize] as usize + LOG[b as usize] as usize]
}

/// The element that gives 1 with `a`. `a` is not 0.
pub(crate) const fn inverse(a: u8) -> u8 {
    assert!(a != 0, "0 has no inverse");
    EXP[255 - LOG[a as usize] as usize]
}

/// `PRODUCTS[c][b]` is c times b: one look-up a byte, for plain code and for tails.
pub(crate) static PRODUCTS: [[u8; 256]; 256] = {
    let mut table = [[0; 256]; 256];
    let mut c = 0;
    while c < 256 {
        let mut b = 0;
        while b < 256 {
            table[c][b] = mul(c as u8, b as u8);
            b += 1;
        }
        c += 1;
    }
    table
};

/// c times a byte as two look-ups of 16: the low nibble's products, then the high nibble's.
/// `NIBBLES[c][b & 15] ^ NIBBLES[c][16 + (b >> 4)]` is c times b.
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
pub(crate) static NIBBLES: [Nibbles; 256] = {
    let mut table = [Nibbles([0; 32]); 256];
    let mut c = 0;
    while c < 256 {
        let mut nibble = 0;
        while nibble < 16 {
            table[c].0[nibble] = mul(c as u8, nibble as u8);
            table[c].0[16 + nibble] = mul(c as u8, (nibble << 4) as u8);
            nibble += 1;
        }
        c += 1;
    }
    table
};

/// The two look-up tables of one coefficient; aligned so that no load crosses a cache line.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub(crate) struct Nibbles(pub [u8; 32]);

/// c times a byte as an 8 by 8 bit matrix, in the layout of `GF2P8AFFINEQB`: the matrix's byte
/// `7 - i` masks those bits of the input whose XOR is bit `i` of the result.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) static BIT_MATRICES: [u64; 256] = {
    let mut table = [0; 256];
    let mut c = 0;
    while c < 256 {
        let mut matrix = 0_u64;
        let mut input_bit = 0;
        while input_bit < 8 {
            let product = mul(c as u8, 1 << input_bit);
            let mut result_bit = 0;
            while result_bit < 8 {
                if product >> result_bit & 1 != 0 {
                    matrix |= 1 << ((7 - result_bit) * 8 + input_bit);
                }
                result_bit += 1;
            }
            input_bit += 1;
        }
        table[c] = matrix;
        c += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiplies as on paper: shift, add, reduce.
    fn mul_by_hand(a: u8, b: u8) -> u8 {
        let mut product = 0_u16;
        for bit in 0..8 {
            if b >> bit & 1 != 0 {
                product ^= u16::from(a) << bit;
            }
        }
        for bit in (8..16).rev() {
            if product >> bit & 1 != 0 {
                product ^= POLYNOMIAL << (bit - 8);
            }
        }
        product as u8
    }

    #[test]
    fn tables_multiply_as_on_paper() {
        for a in 0..=255_u8 {
            for b in 0..=255_u8 {
                let expect = mul_by_hand(a, b);
                assert_eq!(mul(a, b), expect);
                assert_eq!(PRODUCTS[usize::from(a)][usize::from(b)], expect);
                let nibbles = &NIBBLES[usize::from(a)].0;
                assert_eq!(
                    nibbles[usize::from(b & 15)] ^ nibbles[16 + usize::from(b >> 4)],
                    expect
                );
                let rows = BIT_MATRICES[usize::from(a)].to_le_bytes();
                let by_bits = (0..8).fold(0, |byte, bit| {
                    byte | (((rows[7 - bit] & b).count_ones() as u8 & 1) << bit)
                });
                assert_eq!(by_bits, expect);
            }
            if a != 0 {
                assert_eq!(mul(a, inverse(a)), 1);
            }
        }
    }
}
