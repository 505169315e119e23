//! Keys and the mouse: what each means. Pure.

use ratatui::crossterm::event::{
    Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};

/// What a key means.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Quit,
    Suspend,
    Redraw,
    Help,
    Page(usize),
    /// The next page, or the previous one.
    Turn(isize),
    /// The next box of the page, or the previous one.
    Focus(isize),
    /// Rows down, or up.
    Move(isize),
    /// Boxes full of rows down, or up.
    Leap(isize),
    /// To the first row, or to the last one.
    Edge(isize),
    /// The next column to sort by, or the previous one.
    Sort(isize),
    Reverse,
    /// Another table in the same box.
    Change,
    Pause,
    Units,
    Open,
    /// Leave what is open: details, help, a filter.
    Back,
    Filter,
    Time,
    /// Windows later, or earlier.
    Scroll(i64),
    Oldest,
    Now,
    Type(char),
    Erase,
    EraseAll,
    Accept,
    Click {
        column: u16,
        row: u16,
    },
    Wheel {
        column: u16,
        row: u16,
        by: isize,
    },
}

/// Windows of the recording that a long step goes.
const LONG_STEP: i64 = 6;
/// Rows that the wheel goes.
const WHEEL: isize = 3;

/// What an event means. While a filter or a time is typed, letters are letters.
pub fn action(event: &Event, is_typing: bool) -> Option<Action> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => control(key).or_else(|| match is_typing {
            true => typed(key),
            false => command(key),
        }),
        Event::Mouse(mouse) => of_mouse(mouse),
        Event::Resize(..) => Some(Action::Redraw),
        _ => None,
    }
}

fn control(key: &KeyEvent) -> Option<Action> {
    let KeyCode::Char(letter) = key.code else { return None };
    if !key.modifiers.contains(KeyModifiers::CONTROL) {
        return None;
    }
    Some(match letter {
        'c' => Action::Quit,
        'z' => Action::Suspend,
        'l' => Action::Redraw,
        'u' => Action::EraseAll,
        'd' | 'f' => Action::Leap(1),
        'b' => Action::Leap(-1),
        'h' => Action::Erase,
        _ => return None,
    })
}

fn typed(key: &KeyEvent) -> Option<Action> {
    Some(match key.code {
        KeyCode::Char(letter) => Action::Type(letter),
        KeyCode::Backspace => Action::Erase,
        KeyCode::Enter => Action::Accept,
        KeyCode::Esc => Action::Back,
        KeyCode::Up => Action::Move(-1),
        KeyCode::Down => Action::Move(1),
        _ => return None,
    })
}

fn command(key: &KeyEvent) -> Option<Action> {
    let is_long = key.modifiers.intersects(KeyModifiers::SHIFT | KeyModifiers::CONTROL);
    let step = if is_long { LONG_STEP } else { 1 };
    Some(match key.code {
        KeyCode::Char(letter) => return letter_command(letter),
        KeyCode::Up => Action::Move(-1),
        KeyCode::Down => Action::Move(1),
        KeyCode::PageUp => Action::Leap(-1),
        KeyCode::PageDown => Action::Leap(1),
        KeyCode::Left => Action::Scroll(-step),
        KeyCode::Right => Action::Scroll(step),
        KeyCode::Home => Action::Oldest,
        KeyCode::End => Action::Now,
        KeyCode::Tab => Action::Turn(1),
        KeyCode::BackTab => Action::Turn(-1),
        KeyCode::Enter => Action::Open,
        KeyCode::Esc | KeyCode::Backspace => Action::Back,
        KeyCode::F(1) => Action::Help,
        KeyCode::F(10) => Action::Quit,
        _ => return None,
    })
}

fn letter_command(letter: char) -> Option<Action> {
    Some(match letter {
        'q' => Action::Quit,
        '?' | 'h' => Action::Help,
        '0' => Action::Page(9),
        '1'..='9' => Action::Page(letter as usize - '1' as usize),
        'j' => Action::Move(1),
        'k' => Action::Move(-1),
        'f' => Action::Focus(1),
        'F' => Action::Focus(-1),
        't' => Action::Edge(-1),
        'b' => Action::Edge(1),
        's' | '>' => Action::Sort(1),
        'S' | '<' => Action::Sort(-1),
        'r' => Action::Reverse,
        'v' => Action::Change,
        ' ' | 'p' => Action::Pause,
        'u' => Action::Units,
        '/' => Action::Filter,
        'g' => Action::Time,
        '[' => Action::Scroll(-LONG_STEP),
        ']' => Action::Scroll(LONG_STEP),
        'n' => Action::Now,
        _ => return None,
    })
}

fn of_mouse(mouse: &MouseEvent) -> Option<Action> {
    let MouseEvent { column, row, .. } = *mouse;
    match mouse.kind {
        MouseEventKind::Down(MouseButton::Left) => Some(Action::Click { column, row }),
        MouseEventKind::ScrollDown => Some(Action::Wheel { column, row, by: WHEEL }),
        MouseEventKind::ScrollUp => Some(Action::Wheel { column, row, by: -WHEEL }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(code: KeyCode, modifiers: KeyModifiers, is_typing: bool) -> Option<Action> {
        action(&Event::Key(KeyEvent::new(code, modifiers)), is_typing)
    }

    #[test]
    fn letters_are_text_while_a_filter_is_typed() {
        let q = |is_typing| press(KeyCode::Char('q'), KeyModifiers::NONE, is_typing);
        assert_eq!([q(false), q(true)], [Some(Action::Quit), Some(Action::Type('q'))]);
        let quit = |is_typing| press(KeyCode::Char('c'), KeyModifiers::CONTROL, is_typing);
        assert_eq!([quit(false), quit(true)], [Some(Action::Quit), Some(Action::Quit)], "Ctrl-C always ends");
    }

    #[test]
    fn arrows_scroll_in_time() {
        let left = |modifiers| press(KeyCode::Left, modifiers, false);
        assert_eq!(left(KeyModifiers::NONE), Some(Action::Scroll(-1)));
        assert_eq!(left(KeyModifiers::SHIFT), Some(Action::Scroll(-LONG_STEP)));
        assert_eq!(press(KeyCode::End, KeyModifiers::NONE, false), Some(Action::Now));
    }

    #[test]
    fn numbers_open_pages() {
        let page = |letter| press(KeyCode::Char(letter), KeyModifiers::NONE, false);
        assert_eq!([page('1'), page('9'), page('0')], [0, 8, 9].map(|page| Some(Action::Page(page))));
    }

    #[test]
    fn mouse_selects_and_scrolls() {
        let mouse = |kind| {
            let event = MouseEvent { kind, column: 7, row: 3, modifiers: KeyModifiers::NONE };
            action(&Event::Mouse(event), false)
        };
        assert_eq!(mouse(MouseEventKind::Down(MouseButton::Left)), Some(Action::Click { column: 7, row: 3 }));
        assert_eq!(mouse(MouseEventKind::ScrollUp), Some(Action::Wheel { column: 7, row: 3, by: -WHEEL }));
        assert_eq!(mouse(MouseEventKind::Moved), None);
    }
}
