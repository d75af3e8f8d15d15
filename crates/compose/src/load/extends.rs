//! `extends`: a service begins as another one, of the same file or of another.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{Loader, MAX_NESTING, Scope, canonical, files, merge, paths, unique};
use crate::error::{Error, Result};
use crate::yaml::{At, Directive, Fault, Node};

/// Services of a file, and where it is.
struct Source<'a> {
    path: &'a Path,
    services: &'a Node,
}

impl Loader {
    /// Replaces services that extend others by what becomes of them.
    pub(super) fn extend(&mut self, document: &mut Node, path: &Path, scope: &Scope) -> Result<()> {
        let Some(services) = document.get("services") else {
            return Ok(());
        };
        let Some(map) = services.as_map() else {
            return Ok(());
        };
        let extending: Vec<String> = map
            .iter()
            .filter(|(_, service)| service.get("extends").is_some())
            .map(|(name, _)| name.clone())
            .collect();
        if extending.is_empty() {
            return Ok(());
        }
        let services = services.clone();
        let source = Source {
            path,
            services: &services,
        };
        for name in extending {
            let mut way = Vec::new();
            let whole = self.extended(&name, &source, scope, &scope.directory, &mut way)?;
            if let Some(place) = document
                .get_mut("services")
                .and_then(|services| services.get_mut(&name))
            {
                *place = whole;
            }
        }
        Ok(())
    }

    /// A service with all that it extends. `way` has the services on the way here, for cycles.
    fn extended(
        &mut self,
        name: &str,
        source: &Source<'_>,
        scope: &Scope,
        directory: &Path,
        way: &mut Vec<(PathBuf, String)>,
    ) -> Result<Node> {
        let Some(service) = source.services.get(name) else {
            return Err(Error::project(format!(
                "service {name:?} not found in {}",
                source.path.display()
            )));
        };
        let at = service.at;
        let Some(extends) = service.get("extends") else {
            return Ok(service.clone());
        };
        let fail = |loader: &Self, at: At, message: String| {
            Err(loader.fault(Fault::new(at, format!("services.{name}.extends"), message)))
        };
        let base = extends.as_str().or_else(|| extends.text("service"));
        let Some(base) = base.map(str::to_owned) else {
            return fail(self, extends.at, "service is required".to_owned());
        };
        let here = (source.path.to_owned(), name.to_owned());
        if way.contains(&here) || way.len() >= MAX_NESTING {
            let steps: Vec<String> = way
                .iter()
                .chain([&here])
                .map(|(path, name)| format!("{name} in {}", path.display()))
                .collect();
            return fail(
                self,
                extends.at,
                format!("circular reference: {}", steps.join(" extends ")),
            );
        }
        way.push(here);
        let mut base_node = match extends.text("file") {
            None => {
                if source.services.get(&base).is_none() {
                    let message = format!(
                        "cannot extend service {name:?} in {}: service {base:?} not found",
                        source.path.display()
                    );
                    return fail(self, extends.at, message);
                }
                self.extended(&base, source, scope, directory, way)?
            }
            Some(file) => {
                let file = self.extended_file(directory, file, extends.at)?;
                let place = file.parent().map_or_else(|| directory.to_owned(), Path::to_owned);
                let mut services = self.services_of(&file, scope)?;
                let Some(services) = services.as_mut().filter(|services| services.get(&base).is_some())
                else {
                    let message = format!(
                        "cannot extend service {name:?} in {}: service {base:?} not found in {}",
                        source.path.display(),
                        file.display()
                    );
                    return fail(self, extends.at, message);
                };
                let other = Source {
                    path: &file,
                    services,
                };
                let mut node = self.extended(&base, &other, scope, &place, way)?;
                // Relative paths are those of the file they stand in.
                self.lengthen(&mut node)?;
                paths::resolve_service(
                    &mut node,
                    &place,
                    scope.environment.get("HOME").map(String::as_str),
                );
                node
            }
        };
        way.pop();
        merge::strip(&mut base_node);
        let mut own = service.clone();
        let directives: HashMap<String, Directive> = own
            .as_map()
            .into_iter()
            .flatten()
            .map(|(key, item)| (key.clone(), item.directive))
            .collect();
        if let Some(map) = own.as_map_mut() {
            map.shift_remove("extends");
        }
        let mut merged = merge::service(base_node, own).map_err(|mut fault| {
            fault.path = fault.path.replacen("services.x", &format!("services.{name}"), 1);
            self.fault(fault)
        })?;
        // What replaces here replaces in the files below, too.
        for (key, directive) in directives {
            match (directive, merged.as_map_mut()) {
                (Directive::Override, Some(map)) => {
                    if let Some(item) = map.get_mut(&key) {
                        item.directive = directive;
                    }
                }
                (Directive::Reset, Some(map)) => {
                    let mut reset = Node::new(at, crate::yaml::Value::Null);
                    reset.directive = directive;
                    map.insert(key, reset);
                }
                _ => {}
            }
        }
        merged.at = at;
        Ok(merged)
    }

    fn extended_file(&self, directory: &Path, file: &str, at: At) -> Result<PathBuf> {
        if file.contains("://") || file.starts_with("git@") {
            let message = format!("{file:?} is not here: only local files can be extended");
            return Err(self.fault(Fault::new(at, "extends.file", message)));
        }
        Ok(files::absolute(directory, Path::new(file)))
    }

    /// The services of another file, its documents merged.
    fn services_of(&mut self, file: &Path, scope: &Scope) -> Result<Option<Node>> {
        let mut whole = Node::map(At::file(0));
        for mut document in self.read(file)? {
            self.interpolated(&mut document, &scope.environment)?;
            whole = merge::merge(whole, document).map_err(|fault| self.fault(fault))?;
        }
        Ok(whole.get("services").cloned())
    }

    /// Brings one service into the long forms.
    fn lengthen(&self, service: &mut Node) -> Result<()> {
        let at = service.at;
        let mut model = Node::map(at);
        let mut services = Node::map(at);
        if let Some(map) = services.as_map_mut() {
            map.insert("x".to_owned(), std::mem::replace(service, Node::map(at)));
        }
        if let Some(map) = model.as_map_mut() {
            map.insert("services".to_owned(), services);
        }
        merge::strip(&mut model);
        unique::enforce(&mut model).map_err(|fault| self.fault(fault))?;
        canonical::canonical(&mut model, !self.interpolate).map_err(|fault| self.fault(fault))?;
        if let Some(found) = model
            .get_mut("services")
            .and_then(|services| services.get_mut("x"))
        {
            *service = found.clone();
        }
        Ok(())
    }
}
