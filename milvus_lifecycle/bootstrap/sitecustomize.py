"""Python runs this at its start under `milvus-lifecycle run`, in the program and in its children.

Children may be Pythons of other environments, where it does nothing; so the syntax is of any age.
Nothing is imported before the program imports pymilvus.
"""

# mypy: allow-untyped-defs

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = os.path.dirname(HERE)


class EngineFinder:
    """Installs the engine as soon as the program has imported pymilvus."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "milvus_lifecycle":
            # The code that `run` is of, although the program's path may know another, or none.
            from importlib.util import spec_from_file_location

            return spec_from_file_location(name, os.path.join(PACKAGE, "__init__.py"))
        if name != "pymilvus":
            return None
        others = [one for one in sys.meta_path if one is not cls and hasattr(one, "find_spec")]
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        load, own = spec.loader.exec_module, vars(spec.loader)

        def load_and_install(module):
            del own["exec_module"]
            load(module)
            from milvus_lifecycle.integrations.pymilvus import install_for_run

            install_for_run()
            if cls in sys.meta_path:
                sys.meta_path.remove(cls)

        own["exec_module"] = load_and_install
        return spec


# The program finds its path as it would be without us. Children get the variable PYTHONPATH.
sys.path[:] = [folder for folder in sys.path if folder != HERE]
sys.path_importer_cache.pop(HERE, None)
if os.environ.get("MILVUS_LIFECYCLE_RUN") == sys.prefix:
    sys.meta_path.insert(0, EngineFinder)
# The one that this one hides. If there is none, Python takes the ImportError for just that.
del sys.modules["sitecustomize"]
import sitecustomize  # type: ignore[import-not-found] # noqa: E402, F401
