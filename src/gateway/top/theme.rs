//! Colours. They repeat what words, signs and places say, so that nothing is lost without them. Blue, yellow and magenta are
//! distinct for every kind of colour vision; the terminal's own sixteen colours keep its contrast.

use ratatui::style::{Color, Modifier, Style};

/// The styles, with or without colours.
#[derive(Clone, Copy)]
pub struct Theme {
    pub has_colors: bool,
}

impl Theme {
    fn colored(self, color: Color) -> Style {
        if self.has_colors { Style::new().fg(color) } else { Style::new() }
    }

    pub fn received(self) -> Style {
        self.colored(Color::Cyan)
    }

    pub fn sent(self) -> Style {
        self.colored(Color::Yellow)
    }

    pub fn frame(self) -> Style {
        self.colored(Color::Blue)
    }

    pub fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub fn head(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// What keys are for: the selected row, the open page.
    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub fn critical(self) -> Style {
        self.colored(Color::Magenta).add_modifier(Modifier::BOLD)
    }

    pub fn warning(self) -> Style {
        self.colored(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    pub fn good(self) -> Style {
        self.colored(Color::Green)
    }

    /// The style of a cell, by the head of its column.
    pub fn cell(self, column: &str, text: &str) -> Style {
        match (column, text) {
            ("received", _) => self.received(),
            ("sent", _) => self.sent(),
            ("history" | "retransmitted", _) => self.frame(),
            ("severity", "CRITICAL") => self.critical(),
            ("severity", "WARNING") => self.warning(),
            ("severity", "ended") => self.dim(),
            ("outcome", "established" | "connecting") | ("answer", "NOERROR" | "waiting") => Style::new(),
            ("outcome" | "answer", _) => self.warning(),
            _ => Style::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_leaves_only_attributes() {
        let plain = Theme { has_colors: false };
        for style in
            [plain.received(), plain.critical(), plain.warning(), plain.good(), plain.cell("outcome", "refused")]
        {
            assert_eq!((style.fg, style.bg), (None, None));
        }
        let colored = Theme { has_colors: true };
        assert_ne!(colored.received().fg, colored.sent().fg);
    }
}
