//! Which instruction: opcode bytes of a group, at random.

use crate::generate::{Group, Random};

/// What an instruction is made of before its operands.
pub struct Opcode {
    /// 0x66, 0xf2, 0xf3 in any order.
    pub prefixes: Vec<u8>,
    /// 0: one byte; 1: 0f; 2: 0f 38; 3: 0f 3a.
    pub map: u8,
    pub byte: u8,
    pub modrm: bool,
    /// What the reg field must be.
    pub reg: Option<u8>,
    /// Memory only.
    pub memory: bool,
}

impl Opcode {
    pub fn plain(byte: u8) -> Self {
        Self {
            prefixes: vec![],
            map: 0,
            byte,
            modrm: false,
            reg: None,
            memory: false,
        }
    }

    pub fn modrm(byte: u8) -> Self {
        Self {
            modrm: true,
            ..Self::plain(byte)
        }
    }

    pub fn reg(byte: u8, reg: u8) -> Self {
        Self {
            reg: Some(reg),
            ..Self::modrm(byte)
        }
    }

    pub fn two(byte: u8) -> Self {
        Self {
            map: 1,
            ..Self::modrm(byte)
        }
    }

    pub fn map(self, map: u8) -> Self {
        Self { map, ..self }
    }

    pub fn prefix(mut self, prefix: u8) -> Self {
        self.prefixes.push(prefix);
        self
    }
}

pub fn range(random: &mut Random, first: u8, last: u8) -> u8 {
    first + random.below(u64::from(last - first) + 1) as u8
}

/// One opcode of a group.
pub fn opcode(random: &mut Random, group: Group) -> Opcode {
    let wide = |random: &mut Random, opcode: Opcode| {
        if random.one_in(4) {
            opcode.prefix(0x66)
        } else {
            opcode
        }
    };
    match group {
        Group::Arithmetic => {
            let opcode = match random.below(10) {
                0..=2 => {
                    let operation = random.below(8) as u8 * 8;
                    let form = random.below(6) as u8;
                    let byte = operation | form;
                    if form < 4 {
                        Opcode::modrm(byte)
                    } else {
                        Opcode::plain(byte)
                    }
                }
                3..=4 => {
                    let byte = random.pick(&[0x80, 0x81, 0x83]);
                    Opcode::modrm(byte)
                }
                5 => {
                    let byte = random.pick(&[0x84, 0x85]);
                    Opcode::modrm(byte)
                }
                6 => {
                    let byte = random.pick(&[0xfe, 0xff]);
                    Opcode::reg(byte, random.below(2) as u8)
                }
                7..=8 => {
                    let byte = random.pick(&[0xf6, 0xf7]);
                    Opcode::modrm(byte)
                }
                _ => match random.below(5) {
                    0 => Opcode::modrm(0x69),
                    1 => Opcode::modrm(0x6b),
                    2 => Opcode::two(0xaf),
                    3 => Opcode::plain(0xa8),
                    _ => Opcode::plain(0xa9),
                },
            };
            wide(random, opcode)
        }
        Group::Moves => {
            let opcode = match random.below(20) {
                0 => Opcode::modrm(random.pick(&[0x86, 0x87])),
                1..=3 => Opcode::modrm(range(random, 0x88, 0x8c)),
                4 => Opcode::plain(range(random, 0xb0, 0xbf)),
                5 => Opcode::reg(random.pick(&[0xc6, 0xc7]), 0),
                6 => Opcode::modrm(0x8d),
                7 => Opcode::modrm(0x63),
                8..=9 => Opcode::two(random.pick(&[0xb6, 0xb7, 0xbe, 0xbf])),
                10 => Opcode::two(range(random, 0x40, 0x4f)),
                11 => Opcode::two(range(random, 0x90, 0x9f)),
                12 => Opcode::plain(random.pick(&[0x98, 0x99])),
                13 => Opcode {
                    modrm: false,
                    ..Opcode::two(range(random, 0xc8, 0xcf))
                },
                14 => Opcode::modrm(random.pick(&[0xf0, 0xf1])).map(2),
                15 => Opcode::two(random.pick(&[0xc0, 0xc1, 0xb0, 0xb1])),
                16 => Opcode {
                    memory: true,
                    reg: Some(1),
                    ..Opcode::two(0xc7)
                },
                17 => Opcode::plain(random.pick(&[0x9e, 0x9f, 0xf5, 0xf8, 0xf9, 0xfc, 0xfd])),
                18 => Opcode::plain(range(random, 0x90, 0x97)),
                _ => Opcode::plain(random.pick(&[0xa0, 0xa1, 0xa2, 0xa3, 0xd7])),
            };
            wide(random, opcode)
        }
        Group::Shifts => {
            let opcode = match random.below(3) {
                0..=1 => Opcode::modrm(random.pick(&[0xc0, 0xc1, 0xd0, 0xd1, 0xd2, 0xd3])),
                _ => Opcode::two(random.pick(&[0xa4, 0xa5, 0xac, 0xad])),
            };
            wide(random, opcode)
        }
        Group::Bits => {
            let opcode = match random.below(4) {
                0 => Opcode::two(random.pick(&[0xa3, 0xab, 0xb3, 0xbb])),
                1 => Opcode::reg(0xba, range(random, 4, 7)).map(1),
                2 => {
                    let opcode = Opcode::two(random.pick(&[0xbc, 0xbd, 0xb8]));
                    if opcode.byte == 0xb8 || random.one_in(2) {
                        opcode.prefix(0xf3)
                    } else {
                        opcode
                    }
                }
                _ => Opcode::modrm(random.pick(&[0xf0, 0xf1])).map(2).prefix(0xf2),
            };
            wide(random, opcode)
        }
        Group::Strings => {
            let mut opcode =
                Opcode::plain(random.pick(&[0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf]));
            if !random.one_in(4) {
                opcode = opcode.prefix(random.pick(&[0xf2, 0xf3]));
            }
            if random.one_in(10) {
                opcode = opcode.prefix(0x67);
            }
            wide(random, opcode)
        }
        Group::Stack => {
            let opcode = match random.below(8) {
                0..=2 => Opcode::plain(range(random, 0x50, 0x5f)),
                3 => Opcode::plain(random.pick(&[0x68, 0x6a])),
                4 => Opcode::reg(0x8f, 0),
                5 => Opcode::reg(0xff, 6),
                6 => Opcode::plain(random.pick(&[0x9c, 0xc9])),
                _ => Opcode::plain(0xc8),
            };
            wide(random, opcode)
        }
        Group::Locked => {
            let opcode = match random.below(8) {
                0..=1 => Opcode::modrm((random.below(7) as u8 * 8) | random.below(2) as u8),
                2 => Opcode::modrm(random.pick(&[0x80, 0x81, 0x83])),
                3 => Opcode::reg(random.pick(&[0xfe, 0xff]), random.below(2) as u8),
                4 => Opcode::reg(random.pick(&[0xf6, 0xf7]), range(random, 2, 3)),
                5 => Opcode::two(random.pick(&[0xab, 0xb3, 0xbb, 0xc0, 0xc1, 0xb0, 0xb1])),
                6 => Opcode::reg(0xba, range(random, 5, 7)).map(1),
                _ => Opcode::reg(0xc7, 1).map(1),
            };
            let opcode = Opcode {
                memory: !random.one_in(20),
                ..opcode
            };
            wide(random, opcode.prefix(0xf0))
        }
        Group::Sse | Group::SseFloat | Group::Mmx => {
            let float = group == Group::SseFloat;
            let opcode = match random.below(if float { 10 } else { 12 }) {
                0..=5 if float => Opcode::two(random.pick(&[
                    0x2a, 0x2c, 0x2d, 0x2e, 0x2f, 0x51, 0x52, 0x53, 0x58, 0x59, 0x5a, 0x5b, 0x5c, 0x5d, 0x5e,
                    0x5f, 0x7c, 0x7d, 0xc2, 0xd0, 0xe6,
                ])),
                6 if float => Opcode::modrm(random.pick(&[0x08, 0x09, 0x0a, 0x0b, 0x40, 0x41])).map(3),
                0..=8 => {
                    let byte = match random.below(6) {
                        0 => range(random, 0x10, 0x17),
                        1 => range(random, 0x28, 0x2f),
                        2 => range(random, 0x50, 0x7f),
                        3 => random.pick(&[0xc2, 0xc3, 0xc4, 0xc5, 0xc6]),
                        _ => range(random, 0xd0, 0xfe),
                    };
                    Opcode::two(byte)
                }
                9..=10 => Opcode::modrm(match random.below(4) {
                    0 => range(random, 0x00, 0x0b),
                    1 => random.pick(&[0x10, 0x14, 0x15, 0x17]),
                    2 => range(random, 0x1c, 0x2b),
                    _ => range(random, 0x30, 0x41),
                })
                .map(2),
                _ => Opcode::modrm(match random.below(4) {
                    0 => range(random, 0x08, 0x0f),
                    1 => range(random, 0x14, 0x17),
                    2 => random.pick(&[0x20, 0x21, 0x22, 0x40, 0x41, 0x42, 0x44]),
                    _ => range(random, 0x60, 0x63),
                })
                .map(3),
            };
            let prefix = if group == Group::Mmx {
                random.pick(&[0, 0, 0, 0x66, 0xf2, 0xf3])
            } else {
                random.pick(&[0, 0x66, 0x66, 0xf2, 0xf3])
            };
            if prefix == 0 {
                opcode
            } else {
                opcode.prefix(prefix)
            }
        }
        Group::X87 => {
            if random.one_in(40) {
                return Opcode::plain(0x9b);
            }
            Opcode::modrm(range(random, 0xd8, 0xdf))
        }
        Group::Jumps => Opcode::plain(0x90),
        Group::Any => {
            let opcode = match random.below(3) {
                0 => Opcode {
                    modrm: random.one_in(2),
                    ..Opcode::plain(random.next() as u8)
                },
                1 => Opcode::two(random.next() as u8),
                _ => Opcode::modrm(random.next() as u8).map(range(random, 2, 3)),
            };
            match random.below(6) {
                0 => opcode.prefix(0x66),
                1 => opcode.prefix(0xf2),
                2 => opcode.prefix(0xf3),
                _ => opcode,
            }
        }
    }
}
