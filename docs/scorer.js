// Ranks search results: pages of papers and guides first, the library's pages next, entries of the reference last.
var Scorer = {
  score: ([docname, , , , score]) => score + (
    /^(papers|guides)\/|^glossary/.test(docname) ? 12 : /^api\//.test(docname) ? -8 : 0),
  objNameMatch: 9,
  objPartialMatch: 3,
  objPrio: {0: 4, 1: 0, 2: -5},
  objPrioDefault: 0,
  title: 18,
  partialTitle: 9,
  term: 5,
  partialTerm: 2,
};
