//! What was measured, as a picture: medians against the bare server, with the quartiles as whiskers.
//!
//! It is SVG for a page that may be light or dark: nothing behind it, the reader's own letters, and
//! colours that both grounds bear and the colour-blind can tell apart.

use std::fmt::{self, Write as _};

/// A load, with a bar for each server.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) figure: Figure,
    /// Servers with their quartiles, the bare one first.
    pub(crate) bars: Vec<(&'static str, [f64; 3])>,
}

/// What a bar is high by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Throughput, of loads that send the next call when one has ended.
    Rate,
    /// The processor's time for a message, of loads whose throughput is given.
    Cpu,
}

impl Figure {
    fn title(self) -> &'static str {
        match self {
            Self::Rate => "throughput (more is better)",
            Self::Cpu => "CPU for a message (less is better)",
        }
    }
}

/// Of bars, from one to the next, and from the last of a load to the first of another.
const STEP: f64 = 30.0;
const BAR: f64 = 24.0;
const GAP: f64 = 28.0;
/// Between the two figures, and beside the first for its scale.
const ASIDE: f64 = 46.0;
/// From the top: the legend, the titles, and where bars end and begin.
const LEGEND: f64 = 20.0;
const TITLE: f64 = 52.0;
const TOP: f64 = 72.0;
const FLOOR: f64 = 292.0;
const HEIGHT: f64 = 340.0;
/// What the line below takes.
const NARROWEST: f64 = 600.0;
/// What a title takes.
const TITLED: f64 = 240.0;

const STYLE: &str = "\
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 }
.small { font-size: 11px; fill: #59636e }
.middle { text-anchor: middle }
.end { text-anchor: end }
.grid { stroke: #d1d9e0 }
.bare { stroke: #59636e; stroke-dasharray: 4 3 }
.whisker { stroke: #1f2328; fill: none; stroke-width: 1.2 }
.s0 { fill: #8c959f }
.s1 { fill: #e69f00 }
.s2 { fill: #12a37b }
.s3 { fill: #3b8bd8 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .small { fill: #9198a1 }
  .grid { stroke: #3d444d }
  .bare { stroke: #9198a1 }
  .whisker { stroke: #f0f6fc }
}
";
/// Colours that there are.
const COLOURS: usize = 4;

/// Draws what was measured; loads of one figure stand together, whatever their order.
pub(crate) fn draw(groups: &[Group]) -> Result<String, fmt::Error> {
    let panels = [Figure::Rate, Figure::Cpu]
        .map(|figure| groups.iter().filter(|group| group.figure == figure).collect::<Vec<_>>());
    let panels: Vec<_> = panels.into_iter().filter(|panel| !panel.is_empty()).collect();
    let highest = groups.iter().flat_map(|group| &group.bars).flat_map(|(_, quartiles)| quartiles);
    // One scale for both, to halves, with room for a figure over the highest bar.
    let highest = highest.copied().filter(|value| value.is_finite()).fold(1.0, f64::max);
    let scale = Scale { most: ((highest * 1.08) * 2.0).ceil() / 2.0 };
    let width: f64 = panels.iter().map(|panel| ASIDE + breadth(panel)).sum();
    let width = width.max(NARROWEST);

    let mut svg = String::new();
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 {width} {HEIGHT}\" \
         width=\"{width}\" height=\"{HEIGHT}\">"
    )?;
    writeln!(svg, "<title>The wire, against bare tonic in the same round</title>")?;
    writeln!(svg, "<style>\n{STYLE}</style>")?;
    if let Some(group) = groups.first() {
        legend(&mut svg, group)?;
    }
    let mut left = 0.0;
    for panel in &panels {
        left += ASIDE;
        draw_panel(&mut svg, panel, left, &scale)?;
        left += breadth(panel);
    }
    writeln!(
        svg,
        "<text class=\"small\" x=\"{ASIDE}\" y=\"{}\">medians against bare tonic in the same round; \
         whiskers from the lower to the upper quartile</text>",
        HEIGHT - 8.0
    )?;
    writeln!(svg, "</svg>")?;
    Ok(svg)
}

/// From a ratio to a height.
struct Scale {
    most: f64,
}

impl Scale {
    fn y(&self, ratio: f64) -> f64 {
        FLOOR - (FLOOR - TOP) * ratio / self.most
    }
}

fn breadth(panel: &[&Group]) -> f64 {
    let bars: f64 = panel.iter().map(|group| GAP + STEP * group.bars.len() as f64).sum();
    bars.max(TITLED)
}

fn legend(svg: &mut String, group: &Group) -> fmt::Result {
    let mut x = ASIDE;
    for (number, (server, _)) in group.bars.iter().enumerate() {
        let colour = number % COLOURS;
        writeln!(
            svg,
            "<rect class=\"s{colour}\" x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\" rx=\"2\"/>\
             <text x=\"{}\" y=\"{LEGEND}\">{server}</text>",
            LEGEND - 10.0,
            x + 17.0,
        )?;
        x += 100.0;
    }
    Ok(())
}

fn draw_panel(svg: &mut String, panel: &[&Group], left: f64, scale: &Scale) -> fmt::Result {
    let right = left + breadth(panel);
    if let Some(group) = panel.first() {
        let title = group.figure.title();
        writeln!(svg, "<text class=\"title\" x=\"{left}\" y=\"{TITLE}\">{title}</text>")?;
    }
    let mut line = 0.0;
    while line <= scale.most {
        let y = scale.y(line);
        writeln!(
            svg,
            "<path class=\"grid\" d=\"M{left} {y:.1}H{right}\"/>\
             <text class=\"small end\" x=\"{}\" y=\"{:.1}\">{line:.1}</text>",
            left - 6.0,
            y + 4.0,
        )?;
        line += 0.5;
    }
    let mut x = left;
    for group in panel {
        x += GAP / 2.0;
        let middle = x + STEP * group.bars.len() as f64 / 2.0;
        for (number, (_, quartiles)) in group.bars.iter().enumerate() {
            bar(svg, number % COLOURS, x + (STEP - BAR) / 2.0, *quartiles, scale)?;
            x += STEP;
        }
        writeln!(
            svg,
            "<text class=\"middle\" x=\"{middle}\" y=\"{}\">{}</text>",
            FLOOR + 17.0,
            group.name
        )?;
        x += GAP / 2.0;
    }
    // Over the bars: it is what they are measured by.
    writeln!(svg, "<path class=\"bare\" d=\"M{left} {:.1}H{right}\"/>", scale.y(1.0))
}

fn bar(
    svg: &mut String,
    colour: usize,
    x: f64,
    [low, median, high]: [f64; 3],
    scale: &Scale,
) -> fmt::Result {
    // Without a single round there is nothing to show.
    if !(low.is_finite() && median.is_finite() && high.is_finite()) {
        return Ok(());
    }
    let (y, top, bottom) = (scale.y(median), scale.y(high), scale.y(low));
    let middle = x + BAR / 2.0;
    writeln!(
        svg,
        "<rect class=\"s{colour}\" x=\"{x}\" y=\"{y:.1}\" width=\"{BAR}\" height=\"{:.1}\"/>",
        FLOOR - y
    )?;
    if high > low {
        let (left, right) = (middle - 4.0, middle + 4.0);
        writeln!(
            svg,
            "<path class=\"whisker\" d=\"M{left} {top:.1}H{right}M{middle} {top:.1}V{bottom:.1}\
             M{left} {bottom:.1}H{right}\"/>"
        )?;
    }
    writeln!(
        svg,
        "<text class=\"small middle\" x=\"{middle}\" y=\"{:.1}\">{median:.2}</text>",
        top - 5.0
    )
}
