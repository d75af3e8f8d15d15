//! `vessel image explain`

use vessel_api::{FileAmount, ImageExplanation, ImageStep, LayerExplanation};

use super::{
    FormatOption,
    image_diff::{count, printable},
};
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;
use crate::output::tabwriter::align_with;
use crate::output::template::Data;
use crate::output::text::{ellipsis, short_id};
use crate::output::units::human_size_digits;

/// Show what each layer of an image adds, what is wasted, and who shares it
///
/// A layer cannot give back what is in another: a file that a later step replaces or deletes still takes its space. Sizes
/// are those of files, each counted once however many names it has.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    format: FormatOption,
    /// Do not cut anything short
    #[arg(long)]
    no_trunc: bool,
    /// The largest files of each layer too
    #[arg(short, long)]
    verbose: bool,
    /// The image
    #[arg(value_name = "IMAGE")]
    image: String,
}

/// So many wasted files are shown.
const WASTE: usize = 15;

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let explanation = context.client()?.image_explain(&self.image)?;
        if let Some(template) = self.format.template()? {
            let value = serde_json::to_value(&explanation).map_err(Failure::new)?;
            output::print_line(&template.apply(&Data::new(&value)).map_err(Failure::new)?)?;
            return Ok(());
        }
        output::print(&self.text(&explanation))?;
        Ok(())
    }
}

impl Args {
    fn text(&self, image: &ImageExplanation) -> String {
        let mut out = align_with(&head(image), 1);
        out.push('\n');
        let mut table = String::from("STEP\tSIZE\tADDED\tCHANGED\tDELETED\tWASTED\tCREATED BY\n");
        for (number, step) in image.steps.iter().enumerate() {
            let by = printable(&step.created_by.replace('\t', " "));
            let by = if self.no_trunc { by } else { ellipsis(&by, 70) };
            let cells = step.layer.as_ref().map_or_else(
                || "-\t\t\t\t".to_string(),
                |layer| {
                    format!(
                        "{}\t{}\t{}\t{}\t{}",
                        size(layer.size),
                        amount(&layer.added),
                        amount(&layer.changed),
                        amount(&layer.deleted),
                        some(layer.wasted)
                    )
                },
            );
            table.push_str(&format!("{}\t{cells}\t{by}\n", number + 1));
        }
        out.push_str(&align_with(&table, 1));
        for (number, layer) in layers(image) {
            out.push_str(&self.notes(number, layer));
        }
        if !image.waste.is_empty() {
            let shown = if self.no_trunc { image.waste.len() } else { WASTE };
            let mut table = String::from("\nWASTED\tTIMES\tWHY\tFILE\n");
            for file in image.waste.iter().take(shown) {
                let why = if file.deleted { "deleted" } else { "replaced" };
                let path = printable(&file.path);
                table.push_str(&format!("{}\t{}\t{why}\t{path}\n", size(file.size), file.times));
            }
            out.push_str(&align_with(&table, 1));
            let more = image.waste.len().saturating_sub(shown) as u64 + image.waste_omitted;
            if more > 0 {
                out.push_str(&format!("and {more} more\n"));
            }
        }
        out
    }

    fn notes(&self, number: usize, layer: &LayerExplanation) -> String {
        let mut out = String::new();
        if !layer.shared_by.is_empty() {
            let names = layer.shared_by.join(", ");
            let names = if self.no_trunc {
                names
            } else {
                ellipsis(&names, 90)
            };
            out.push_str(&format!("Step {number} is shared with {names}\n"));
        }
        if layer.attributes_only.bytes > 0 {
            out.push_str(&format!(
                "Step {number} stores {} again only to change owner, mode or attributes of {}\n",
                size(layer.attributes_only.bytes),
                count(layer.attributes_only.files, "file")
            ));
        }
        if self.verbose {
            for file in &layer.largest {
                out.push_str(&format!("{:>9}  {}\n", size(file.size), printable(&file.path)));
            }
        }
        if !out.is_empty() {
            out.insert(0, '\n');
        }
        out
    }
}

fn head(image: &ImageExplanation) -> String {
    let names = match image.tags.as_slice() {
        [] => short_id(&image.id).to_string(),
        tags => tags.join(", "),
    };
    let shared = match image.shared {
        0 => "nothing".to_string(),
        shared => size(shared),
    };
    format!(
        "Image\t{names} ({}, {})\nSize\t{} in {}\nSeen\t{} by a container\nWasted\t{} replaced or deleted by later steps\nEfficiency\t{:.1} %\nShared\t{shared} with other images\n",
        short_id(&image.id),
        image.platform,
        size(image.size),
        count(layers(image).count() as u64, "layer"),
        size(image.visible),
        size(image.wasted),
        image.efficiency * 100.0,
    )
}

fn layers(image: &ImageExplanation) -> impl Iterator<Item = (usize, &LayerExplanation)> {
    let numbered = image.steps.iter().enumerate();
    numbered.filter_map(|(number, step): (usize, &ImageStep)| Some((number + 1, step.layer.as_ref()?)))
}

fn size(bytes: u64) -> String {
    human_size_digits(bytes as f64, 3)
}

fn some(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { size(bytes) }
}

fn amount(amount: &FileAmount) -> String {
    match (amount.files, amount.bytes) {
        (0, _) => String::new(),
        (files, 0) => files.to_string(),
        (files, bytes) => format!("{files} ({})", size(bytes)),
    }
}
